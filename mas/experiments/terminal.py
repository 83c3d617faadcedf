"""What ``mas run`` shows while cells are trained: on a terminal a line for each running cell, otherwise plain lines."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mas.experiments.events import CellAt, CellEnded, CellStarted, Event, Progress, Started

Clock = Callable[[], float]

_REFRESHES = 4  # a second
_SPARE_LINES = 2  # of the terminal's height: the total, and the cursor's line
_WITH_BAR = 60  # columns of a terminal that has room for a bar


@dataclass
class RunningCell:
    """A cell that is being done.

    Attributes:
        name: of the cell.
        at: where it was last; None before it has said so.
        first: where it was first, and when: a cell that goes on begins in the middle.
        loss, accuracy: that it has said last.
    """

    name: str
    at: CellAt | None = None
    first: tuple[float, float] | None = None
    loss: float | None = None
    accuracy: float | None = None

    def note(self, at: CellAt, now: float) -> None:
        """Note where the cell is; loss and accuracy that are not said stay as they were."""
        loss, accuracy = (at.loss, at.accuracy) if at.loss is not None else (self.loss, self.accuracy)
        self.at = at
        self.loss, self.accuracy = loss, accuracy
        if at.part:  # of how much, is not known
            self.first = None
        elif self.first is None or self.first[0] > at.share:
            self.first = (at.share, now)

    @property
    def share(self) -> float:
        """The share of its training that is done."""
        return self.at.share if self.at else 0.0

    @property
    def gained(self) -> float:
        """The share that was done since it was first heard of."""
        return self.share - self.first[0] if self.first else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return the time that the rest takes at the speed so far; None where that cannot be told."""
        if self.first is None or self.gained <= 0:
            return None
        since = now - self.first[1]
        return (1 - self.share) * since / self.gained


@dataclass
class Board:
    """What is known of a run from its events.

    Args:
        clock: returns the time in seconds.
    """

    clock: Clock = time.monotonic
    total: int = 0
    kept: int = 0
    ended: int = 0
    running: dict[str, RunningCell] = field(default_factory=dict)
    begun: float | None = None  # when the first cell was

    @property
    def done(self) -> int:
        """How many cells are done."""
        return self.kept + self.ended

    def note(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Started):
            self.total, self.kept = event.total, event.kept
        elif isinstance(event, CellStarted):
            self.begun = self.clock() if self.begun is None else self.begun
            self.running[event.cell.id] = RunningCell(event.cell.id)
        elif isinstance(event, CellAt):
            name = event.cell.id
            self.running.setdefault(name, RunningCell(name)).note(event, self.clock())
        elif isinstance(event, CellEnded):
            self.running.pop(event.cell.id, None)
            self.ended += 1

    def share(self) -> float:
        """Return the share of the cells that is done, with the parts of those that are running."""
        parts = sum(cell.share for cell in self.running.values())
        return min(1.0, (self.done + parts) / max(1, self.total))

    def seconds_left(self) -> float | None:
        """Return the time that the rest takes at the speed so far, at least that of the slowest running cell."""
        gained = self.ended + sum(cell.gained for cell in self.running.values())
        if self.begun is None or gained <= 0:
            return None
        now = self.clock()
        rest = self.total * (1 - self.share())
        by_speed = rest * (now - self.begun) / gained
        each = [cell.seconds_left(now) or 0.0 for cell in self.running.values()]
        return max(by_speed, *each, 0.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a line for each running cell that fits, and one for all."""
        yield Group(*_cell_lines(self, options.max_width, console.height), _total_line(self, options.max_width))


def _cell_lines(board: Board, width: int, height: int) -> list[Text]:
    room = max(1, height - _SPARE_LINES)
    cells = list(board.running.values())
    if len(cells) <= room:
        return _rows(cells, width, board.clock())
    shown = cells[: room - 1]
    return [*_rows(shown, width, board.clock()), _line(f"+ {len(cells) - len(shown)} more", width)]


def _rows(cells: Sequence[RunningCell], width: int, now: float) -> list[Text]:
    """Return a line for each cell, in columns; those of little use are left out where the terminal is narrow."""
    columns = {name: [of(cell, now) for cell in cells] for name, of in _COLUMNS.items()}
    widths = {name: max(map(len, texts), default=0) for name, texts in columns.items()}
    widths = {name: size for name, size in widths.items() if size}
    longest = max((len(cell.name) for cell in cells), default=0)
    for name in _DROPPED_FIRST:
        if min(longest, 20) + _needed(widths) > width:
            widths.pop(name, None)
    for_name = max(1, min(longest, width - _needed(widths)))
    lines = []
    for number, cell in enumerate(cells):
        texts = [columns[name][number].ljust(size) for name, size in widths.items()]
        lines.append(_line("  ".join([_shortened(cell.name, for_name), *texts]), width))
    return lines


def _needed(widths: dict[str, int]) -> int:
    return sum(size + 2 for size in widths.values())


def _experience(cell: RunningCell, now: float) -> str:
    if cell.at is None:
        return "begins"
    part = f"{cell.at.part}: " if cell.at.part else ""
    return f"{part}experience {cell.at.experience + 1}/{cell.at.experiences}"


def _epoch(cell: RunningCell, now: float) -> str:
    return f"epoch {cell.at.epoch + 1}/{cell.at.epochs}" if cell.at and cell.at.epochs > 1 else ""


def _loss(cell: RunningCell, now: float) -> str:
    return f"loss {cell.loss:.4g}" if cell.loss is not None else ""


def _accuracy(cell: RunningCell, now: float) -> str:
    return f"accuracy {100 * cell.accuracy:.1f} %" if cell.accuracy is not None else ""


def _percent(cell: RunningCell, now: float) -> str:
    return f"{100 * cell.share:.0f} %"


def _left(cell: RunningCell, now: float) -> str:
    return _time_left(cell.seconds_left(now))


_COLUMNS = {
    "percent": _percent,
    "experience": _experience,
    "epoch": _epoch,
    "loss": _loss,
    "accuracy": _accuracy,
    "left": _left,
}
_DROPPED_FIRST = ("loss", "accuracy", "epoch", "experience", "left")


def _total_line(board: Board, width: int) -> Text | Table:
    counted = f"{board.done}/{board.total} cells"
    rest = f"{100 * board.share():.0f} %  {_time_left(board.seconds_left())}"
    if width < _WITH_BAR:
        return _line(f"{counted}  {rest}", width)
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(counted), ProgressBar(total=1.0, completed=board.share(), width=24), Text(rest))
    return row


def _time_left(seconds: float | None) -> str:
    return "left -:--:--" if seconds is None else f"left {timedelta(seconds=round(seconds))}"


def _line(text: str, width: int) -> Text:
    return Text(_shortened(text.rstrip(), width), no_wrap=True, overflow="crop")


def _shortened(text: str, width: int) -> str:
    """Return a text that fills a width: padded, or cut.

    >>> _shortened("naive-seed0", 8), _shortened("mas", 5)
    ('naive-..', 'mas  ')
    """
    return text.ljust(width) if len(text) <= width else f"{text[: max(0, width - 2)]}.."[:width]


class PlainLines:
    """Writes a line when the run starts, and one for each cell that ends.

    Args:
        file: for the lines.
    """

    def __init__(self, file: TextIO):
        self.file = file
        self.board = Board()

    def __call__(self, event: Event) -> None:
        """Write the line of an event, if it has one."""
        self.board.note(event)
        if isinstance(event, Started):
            self._write(started_line(event))
        elif isinstance(event, CellEnded):
            self._write(ended_line(event, self.board))

    def _write(self, line: str) -> None:
        self.file.write(f"{line}\n")
        self.file.flush()


class LiveLines:
    """Shows the running cells on a terminal, and writes a line for each cell that did not end well.

    Args:
        console: of the terminal.
        clock: returns the time in seconds.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic):
        self.console = console
        self.board = Board(clock)
        self.live = Live(self.board, console=console, refresh_per_second=_REFRESHES, vertical_overflow="crop")

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self.board.note(event)
        if isinstance(event, Started):
            self._write(started_line(event))
            if event.kept < event.total:
                self.live.start()
        elif isinstance(event, CellEnded) and event.status != "finished":
            self._write(ended_line(event, self.board))

    def close(self) -> None:
        """Leave the line for all cells on the terminal."""
        self.board.running.clear()
        self.live.stop()

    def _write(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)


def started_line(event: Started) -> str:
    """Return in one line how many cells are to be trained, and on how many workers."""
    rest = event.total - event.kept
    if not rest:
        return f"{event.kept} of {event.total} cells are finished already in {event.folder} and are kept"
    workers = min(event.workers, rest)
    where = f"on {workers} worker{'s' if workers > 1 else ''}"
    if not event.kept:
        return f"{_cells(event.total)} to train {where}"
    return f"{_cells(event.total)}: {event.kept} finished already in {event.folder}, {rest} to train {where}"


def ended_line(event: CellEnded, board: Board) -> str:
    """Return in one line how a cell ended, with how many are done."""
    return f"{board.done}/{board.total} {event}"


def _cells(number: int) -> str:
    return f"{number} cell{'s' if number > 1 else ''}"


@contextmanager
def showing(file: TextIO) -> Iterator[Progress]:
    """Yield what shows events on a terminal, or writes them as plain lines to any other file."""
    console = Console(file=file)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainLines(file)
        return
    lines = LiveLines(console)
    try:
        yield lines
    finally:
        lines.close()
