"""A share of a config's cells, for one of several jobs that know nothing of each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mas.experiments.errors import UserError

if TYPE_CHECKING:  # a shard that there is not is found before torch is imported
    from mas.experiments.cell import Cell
    from mas.experiments.plan import Plan


@dataclass(frozen=True)
class Shard:
    """The ``number``-th of ``count`` shares, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        """Return the shard as a user gives it, such as ``2/3``."""
        return f"{self.number}/{self.count}"

    def ids(self, plan: "Plan") -> frozenset[str]:
        """Return the ids of this shard's cells: every ``count``-th one of the plan."""
        return frozenset(cell.id for cell in plan.every_cell()[self.number - 1 :: self.count])


@dataclass(frozen=True)
class ShardDone:
    """How far a shard has come."""

    shard: Shard
    done: int
    total: int
    waiting: int  # cells of the shard whose settings are chosen by cells that are not finished
    left: int  # cells of the whole config that are not in this folder

    def __str__(self) -> str:
        """Return it as one line for the terminal."""
        line = f"shard {self.shard}: {self.done} of {self.total} cells are done"
        if self.waiting:
            line += f"; {self.waiting} wait for values that other shards try: run this again when those are done"
        if self.left:
            line += f"; the folder lacks {self.left} of the config's cells, so there is no report yet"
            line += ": once all are there, mas merge or a last mas run makes it"
        return line


def parse_shard(shard: str | Sequence[int] | Shard | None) -> Shard | None:
    """Return a shard from ``"2/3"`` or ``(2, 3)``.

    Raises:
        UserError: it is none.

    >>> parse_shard("2/3")
    Shard(number=2, count=3)
    """
    if shard is None or isinstance(shard, Shard):
        return shard
    parts = shard.split("/") if isinstance(shard, str) else list(shard)
    try:
        number, count = (int(str(part)) for part in parts)
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        found = repr(shard) if isinstance(shard, str) else "/".join(map(str, parts))
        raise UserError(f"shard: found {found}; expected i/n with 1 ≤ i ≤ n, such as 1/3")
    return Shard(number, count)


def share_of(cells: Sequence["Cell"], ids: frozenset[str] | None) -> list["Cell"]:
    """Return the cells of a share; all of them without one."""
    return [cell for cell in cells if ids is None or cell.id in ids]
