"""What cells on other machines have to say, kept until the driver asks for it; and whether they are to stop.

Letters are opaque here, so that the process of the mailbox imports nothing heavy.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

_MOST = 100_000  # letters that are kept while the driver does not ask


@dataclass(frozen=True)
class Letter:
    """News of a cell.

    Attributes:
        name: of the cell.
        node: where it is done.
        events: what it has reported since the last letter, pickled.
        checkpoint: a newer one than the driver has, if it is time for that.
    """

    name: str
    node: str
    events: bytes
    checkpoint: Any = None


class Mailbox:
    """Between the driver and the cells: an actor of Ray that lives beside the driver.

    Of each cell the newest checkpoint is kept.
    """

    def __init__(self) -> None:
        self._letters: deque[Letter] = deque(maxlen=_MOST)
        self._checkpoints: dict[str, Letter] = {}
        self._stopped = False

    def exchange(self, letter: Letter) -> bool:
        """Take a letter of a cell; return whether the cell is to stop."""
        self._letters.append(replace(letter, checkpoint=None))
        if letter.checkpoint is not None:
            self._checkpoints[letter.name] = replace(letter, events=b"")
        return self._stopped

    def collect(self) -> list[Letter]:
        """Return the letters that came since the last time."""
        found = [*self._letters, *self._checkpoints.values()]
        self._letters.clear()
        self._checkpoints.clear()
        return found

    def stop(self) -> None:
        """Tell every cell to stop when it writes next."""
        self._stopped = True
