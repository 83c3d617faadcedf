"""Values that are put into configs to see what becomes of them, and what a refusal must look like."""

import math
from typing import Any

LONGEST_LINE = 3_000  # a list of all torchvision models is the longest that is told

NUMBERS: list[Any] = [0, -1, 1, 2, 10**12, 2**31, 2**63, 10**80, 0.0, -0.5, 0.5, 1e-320, 1e308, -1e308]
OTHERS: list[Any] = [math.nan, math.inf, -math.inf, True, None, "", "x", "a\nb", "[/b]", "é", "9" * 300, [], {}]
EXTREMES = NUMBERS + OTHERS
"""What is put into fields: zero, negative, huge, not a number, of a wrong type."""


def check_lines(lines: tuple[str, ...]) -> None:
    """Raise AssertionError if an error is not told in plain lines."""
    wrong = [line for line in lines if not line.strip() or "\n" in line or len(line) > LONGEST_LINE]
    if wrong or not lines:
        raise AssertionError(f"not plain lines: {[line[:300] for line in wrong]}")
