"""Number types with bounds, shared by several modules; the values of a config are checked against them."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]  # from 0 to 1, both included
OpenFraction = Annotated[float, Gt(0), Lt(1)]  # between 0 and 1, both excluded
PartialShare = Annotated[float, Ge(0), Lt(1)]  # from 0 to 1, 1 excluded
Decay = Annotated[float, Gt(0), Le(1)]  # a factor above 0, at most 1
