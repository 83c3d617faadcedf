"""What the terminal shows of a run: rendered in rich's own console, at widths from 1 to 200 columns."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mas.experiments.events import CellAt, CellEnded, CellStarted, EpochEnded, Started
from mas.experiments.terminal import Board, LiveLines, PlainLines, RunningCell, showing, started_line
from tests.experiments.builders import first_cell


class Time:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def cell_named(label, seed=0):
    return replace(first_cell("naive"), label=label, seed=seed)


def at(cell, share, **more):
    values = {"experience": 1, "experiences": 5, "epoch": 2, "epochs": 10, "loss": 0.51234, "accuracy": 0.877}
    return CellAt(cell, share=share, **values | more)


def board_of(*events, clock=None):
    board = Board(clock or Time())
    for event in events:
        board.note(event)
    return board


def lines_of(board, width, height=25):
    """Return what a terminal shows, as text, after a check that no line is too long."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(board, end="")
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


START = Started(Path("runs/x"), 2, 12, 2)


def test_a_line_says_all_of_a_running_cell():
    clock = Time()
    naive, mas = cell_named("naive"), cell_named("mas")
    board = board_of(START, CellStarted(naive), CellStarted(mas), at(naive, 0.2), clock=clock)
    clock.now = 30.0
    board.note(at(naive, 0.25))
    first, second, total = lines_of(board, 120)
    # 5 % took 30 seconds, so the other 75 % take 450
    assert first == "naive-seed0  25 %  experience 2/5  epoch 3/10  loss 0.5123  accuracy 87.7 %  left 0:07:30"
    assert re.fullmatch(r"mas-seed0    0 %   begins +left -:--:--", second)
    assert second.index("left") == first.index("left")
    # 2 of 12 were done before; a twentieth of a cell in 30 s, so the other 9.75 cells take 5850 s
    assert re.fullmatch(r"2/12 cells \S+ +19 %  left 1:37:30", total)


def test_the_total_is_at_least_the_slowest_cell_and_ends_with_the_last():
    clock = Time()
    cells = [cell_named("naive", seed) for seed in range(4)]
    board = board_of(Started(Path("r"), 0, 4, 3), *map(CellStarted, cells), *(at(c, 0.0) for c in cells), clock=clock)
    assert board.seconds_left() is None
    clock.now = 10.0
    for cell in cells[:3]:
        board.note(CellEnded(cell, "finished"))
    board.note(at(cells[3], 0.1))
    assert board.seconds_left() == pytest.approx(90.0)
    board.note(CellEnded(cells[3], "diverged", "loss is nan"))
    assert (board.seconds_left(), board.share(), board.done) == (0.0, 1.0, 4)


def test_a_cell_that_goes_on_is_timed_from_where_it_was():
    cell = RunningCell("naive-seed0")
    cell.note(at(first_cell("naive"), 0.8), 100.0)
    assert cell.seconds_left(100.0) is None
    cell.note(at(first_cell("naive"), 0.9), 110.0)
    assert cell.seconds_left(110.0) == pytest.approx(10.0)


def test_a_cell_that_begins_anew_is_timed_anew():
    cell = RunningCell("naive-seed0")
    for share, now in ((0.1, 0.0), (0.9, 10.0), (0.0, 20.0), (0.5, 30.0)):
        cell.note(at(first_cell("naive"), share), now)
    assert cell.seconds_left(30.0) == pytest.approx(10.0)


def test_a_probe_network_is_named_and_its_time_is_not_the_cells():
    clock = Time()
    cell = cell_named("map")
    board = board_of(START, CellStarted(cell), at(cell, 0.0, part="probe network"), clock=clock)
    first, _ = lines_of(board, 120)
    assert "0 %  probe network: experience 2/5  epoch 3/10  loss 0.5123" in first
    assert first.endswith("left -:--:--")
    clock.now = 100.0
    board.note(at(cell, 0.0))
    clock.now = 110.0
    board.note(at(cell, 0.5))
    assert board.running["map-seed0"].seconds_left(110.0) == pytest.approx(10.0)


def test_loss_and_accuracy_that_are_not_said_stay():
    cell = cell_named("naive")
    board = board_of(START, CellStarted(cell), at(cell, 0.2), at(cell, 0.3, loss=None, accuracy=None))
    assert "loss 0.5123  accuracy 87.7 %" in lines_of(board, 120)[0]


def test_one_epoch_is_not_counted():
    cell = cell_named("naive")
    assert "epoch" not in lines_of(board_of(START, CellStarted(cell), at(cell, 0.2, epoch=0, epochs=1)), 120)[0]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (120, "naive-seed0  20 %  experience 2/5  epoch 3/10  loss 0.5123  accuracy 87.7 %  left -:--:--"),
        (80, "naive-seed0  20 %  experience 2/5  epoch 3/10  accuracy 87.7 %  left -:--:--"),
        (60, "naive-seed0  20 %  experience 2/5  epoch 3/10  left -:--:--"),
        (50, "naive-seed0  20 %  experience 2/5  left -:--:--"),
        (40, "naive-seed0  20 %  left -:--:--"),
        (20, "naive-seed0  20 %"),
        (12, "naiv..  20 %"),
    ],
)
def test_a_narrow_terminal_shows_less(width, expected):
    cell = cell_named("naive")
    assert lines_of(board_of(START, CellStarted(cell), at(cell, 0.2)), width)[0] == expected


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 30, 40, 41, 59, 60, 61, 80, 100, 200])
@pytest.mark.parametrize("label", ["a", "mas~lam=0.1", "a-very-long-label" * 8])
def test_no_line_is_longer_than_the_terminal_is_wide(width, label):
    cells = [cell_named(label, seed) for seed in range(3)]
    board = board_of(START, *map(CellStarted, cells), *(at(cell, 0.3, loss=1e30) for cell in cells))
    assert len(lines_of(board, width)) == 4  # with a check of their length


@pytest.mark.parametrize(("cells", "height", "shown", "more"), [(5, 25, 5, 0), (23, 25, 23, 0), (24, 25, 22, 2)])
def test_cells_that_do_not_fit_are_counted(cells, height, shown, more):
    running = [cell_named("naive", seed) for seed in range(cells)]
    lines = lines_of(board_of(START, *map(CellStarted, running)), 100, height)
    assert sum("seed" in line for line in lines) == shown
    assert lines[0].startswith("naive-seed0 ")
    assert [line for line in lines if "more" in line] == ([f"+ {more} more"] if more else [])
    assert len(lines) < height


@pytest.mark.parametrize("height", [1, 2, 3])
def test_a_low_terminal_shows_the_total(height):
    running = [cell_named("naive", seed) for seed in range(5)]
    lines = lines_of(board_of(START, *map(CellStarted, running)), 50, height)
    assert lines[0] == "+ 5 more"
    assert lines[-1] == "2/12 cells  17 %  left -:--:--"


@pytest.mark.parametrize(
    ("kept", "total", "workers", "line"),
    [
        (0, 12, 2, "12 cells to train on 2 workers"),
        (0, 1, 8, "1 cell to train on 1 worker"),
        (2, 12, 2, "12 cells: 2 finished already in runs/x, 10 to train on 2 workers"),
        (12, 12, 2, "12 of 12 cells are finished already in runs/x and are kept"),
    ],
)
def test_a_line_says_how_many_cells_start_on_how_many_workers(kept, total, workers, line):
    assert started_line(Started(Path("runs/x"), kept, total, workers)) == line


def test_without_a_terminal_there_are_plain_lines():
    file = io.StringIO()
    cell = cell_named("mas")
    with showing(file) as show:
        assert isinstance(show, PlainLines)
        for event in (START, CellStarted(cell), at(cell, 0.5), EpochEnded(cell, 0, 0, 1)):
            show(event)
        show(CellEnded(cell, "finished", None, 1.25))
        show(CellEnded(cell, "diverged", "loss is [nan]", 2.0))
    assert file.getvalue().splitlines() == [
        "12 cells: 2 finished already in runs/x, 10 to train on 2 workers",
        "3/12 mas-seed0: finished, 1.2 s",
        "4/12 mas-seed0: diverged (loss is [nan]), 2.0 s",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with showing(Terminal()) as show:
        assert isinstance(show, PlainLines)
    monkeypatch.setenv("TERM", "xterm")
    with showing(Terminal()) as show:
        assert isinstance(show, LiveLines)


@pytest.mark.parametrize("width", [40, 120])
def test_on_a_terminal_only_what_went_wrong_and_the_total_stay(width):
    file = io.StringIO()
    console = Console(file=file, width=width, height=25, force_terminal=True, color_system=None)
    show = LiveLines(console)
    naive, mas = cell_named("naive"), cell_named("[bold]mas")
    for event in (Started(Path("r"), 0, 2, 2), CellStarted(naive), CellStarted(mas), at(naive, 0.5)):
        show(event)
    show.live.refresh()
    assert re.search(r"naive-seed0 +50 %", file.getvalue())
    show(CellEnded(naive, "finished"))
    show(CellEnded(mas, "diverged", "loss is [nan] :smile:"))
    show.close()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue())
    assert "2/2 _bold_mas-" in text
    assert "diverged (loss is [nan] :smile:)" in text
    assert "finished" not in text
    assert text.rstrip().splitlines()[-1].startswith("2/2 cells")
    assert "\x1b[?25h" in file.getvalue()  # the cursor is shown again


def test_where_nothing_is_to_be_done_nothing_moves():
    file = io.StringIO()
    show = LiveLines(Console(file=file, width=80, force_terminal=True, color_system=None))
    show(Started(Path("runs/x"), 3, 3, 2))
    show.close()
    assert file.getvalue().strip() == "3 of 3 cells are finished already in runs/x and are kept"
