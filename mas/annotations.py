"""Number types with bounds, shared by several modules; the values of a config are checked against them.

Each has an upper bound too: beyond it a value cannot work, and would be told late or not at all.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

LARGEST_INT = 10**15  # sums and products of a few such numbers fit an int64
LARGEST_FLOAT = 1e38  # weights are float32, of which the largest is 3.4e38
LARGEST_SEED = 2**63 - 1  # the largest int64

Count = Annotated[int, Gt(0), Le(LARGEST_INT)]
NonNegativeInt = Annotated[int, Ge(0), Le(LARGEST_INT)]
Seed = Annotated[int, Ge(0), Le(LARGEST_SEED)]
Experiences = Annotated[int, Gt(0), Le(10_000)]  # each is an object, and R has as many rows and columns
Layers = Annotated[int, Gt(0), Le(200)]  # layers, or blocks of layers, one after another
Padding = Annotated[int, Ge(0), Le(64)]  # pixels on each side of every image
Positive = Annotated[float, Gt(0), Le(LARGEST_FLOAT)]
NonNegative = Annotated[float, Ge(0), Le(LARGEST_FLOAT)]
Fraction = Annotated[float, Ge(0), Le(1)]  # from 0 to 1, both included
OpenFraction = Annotated[float, Gt(0), Lt(1)]  # between 0 and 1, both excluded
PartialShare = Annotated[float, Ge(0), Lt(1)]  # from 0 to 1, 1 excluded
Decay = Annotated[float, Gt(0), Le(1)]  # a factor above 0, at most 1
