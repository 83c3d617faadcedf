"""Types with bounds that several modules share; a config's values are checked against them."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]  # from 0 to 1, with both ends
OpenFraction = Annotated[float, Gt(0), Lt(1)]  # between 0 and 1, without the ends
PartialShare = Annotated[float, Ge(0), Lt(1)]  # from 0, but less than all
Decay = Annotated[float, Gt(0), Le(1)]  # a factor by which something falls, or stays
