"""The report as typed parts: every kind of experiment fills them in, and one template renders them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Headings and rows of text."""

    headings: Sequence[str]
    rows: Rows


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, and what stands below it."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: Sequence[str] = ()  # names
    note: str = ""  # below the table
    small: bool = False  # figures stand side by side


@dataclass(frozen=True)
class Page:
    """The page of a run; the template adds the config and the cells that diverged."""

    subject: str
    introduction: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Score:
    """The number by which a reader would compare two runs of one kind.

    Attributes:
        name: with its unit.
        table: columns ``label``, ``mean``, ``ci_low`` and ``ci_high``.
    """

    name: str
    table: pd.DataFrame

    @classmethod
    def of(cls, name: str, table: pd.DataFrame, columns: Sequence[str], factor: float = 1.0) -> "Score":
        """Return a score from four columns of a table, multiplied by a factor."""
        own = table[list(columns)].set_axis(["label", "mean", "ci_low", "ci_high"], axis=1)
        numbers = factor * own[["mean", "ci_low", "ci_high"]].astype(float)
        return cls(name, numbers.assign(label=own["label"].astype(str)))


@dataclass(frozen=True)
class Headline:
    """The short form of a report, for the terminal."""

    title: str
    table: Table
    notes: Sequence[str] = field(default_factory=tuple)
