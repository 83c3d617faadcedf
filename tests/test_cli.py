"""The command as a user types it: what it prints, its exit codes, no tracebacks."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mas import __version__ as version
from mas.benchmarks import DATASETS, DEFICITS, STREAMS
from mas.cli import app
from mas.experiments.networks import MODELS
from mas.experiments.record import Outcome
from mas.experiments.training import Trained
from mas.strategies import PROBES, STRATEGIES

TEXT = """\
experiment: forgetting
benchmark: {experiences: 2}
model: {name: mlp, hidden: [4]}
training: {epochs: 1, batch_size: 128}
strategies: [{name: naive}, {name: mas, lam: 0.1}]
seeds: 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(TEXT)
    return tmp_path


def mas(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_run_then_run_again(here):
    first = mas("run", "small.yaml", "--workers", "1")
    assert first.exit_code == 0
    assert first.output.splitlines()[:2] == ["reading small.yaml", "4 cells to train on 1 worker"]
    assert "1/4 naive-seed0: finished, " in first.output
    assert "4/4 mas-seed1: finished, " in first.output
    assert "report: runs/small/report.html" in first.output
    assert "forgetting − naive" in first.output
    assert (here / "runs/small/report.html").is_file()
    again = mas("run", "small.yaml", "--workers", "1")
    assert again.exit_code == 0
    assert "4 of 4 cells are finished already in runs/small and are kept" in again.output
    assert "seed0: finished" not in again.output
    assert again.output.split("percent")[1] == first.output.split("percent")[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("strategies.1.lam=5", "strategy.lam is 0.1 there and 5.0 here"),
        ("seeds=1", "this config has no cell mas-seed1 and 1 more"),
    ],
)
def test_a_refused_folder_gets_one_line_and_no_talk_of_cells_that_are_kept(here, change, reason):
    mas("run", "small.yaml", "--workers", "1")
    refused = mas("run", "small.yaml", "--workers", "1", "--set", change)
    assert refused.exit_code == 2
    assert refused.stdout == "reading small.yaml\n"
    assert refused.stderr.splitlines() == [
        f"error: runs/small: holds other results: {reason}; choose another folder with --output, or delete this one"
    ]


OLD = """\
experiment: critical_period
benchmark: {dataset: digits, train: 60, test: 40}
model: {name: mlp, hidden: [4]}
training: {epochs: 1, batch_size: 30, device: cpu}
deficit: {name: blur, factor: 2}
removal: [1]
selectivity: [{name: flip}]
seeds: 1
"""


def test_an_old_spelling_is_one_plain_line(here):
    Path("old.yaml").write_text(OLD)
    note = "note: old.yaml:7: selectivity: is now called other_deficits; the old name still works"
    done = mas("run", "old.yaml", "--workers", "1")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == [note]
    assert note not in done.stdout
    assert mas("check", "old.yaml").stderr.splitlines() == [note]
    again = mas("report", "runs/old")
    assert (again.exit_code, again.stderr) == (0, "")


def test_other_warnings_are_shown_as_ever(here, monkeypatch):
    def warns(cell, keep_weights, checkpoints):
        warnings.warn("mind this", UserWarning, stacklevel=1)
        raise ZeroDivisionError

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", warns)
    with pytest.warns(UserWarning, match="mind this"):
        done = mas("run", "small.yaml", "--workers", "1")
    assert "note" not in done.output


def test_version():
    done = mas("--version")
    assert (done.exit_code, done.output) == (0, f"mas {version}\n")
    code = (
        "import sys; from mas.cli import app; app(['--version'], standalone_mode=False); "
        "print({'torch', 'avalanche', 'pandas'} & {*sys.modules})"
    )
    root = Path(__file__).resolve().parent.parent
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert fresh.stdout.splitlines() == [f"mas {version}", "set()"]


def test_with_one_seed_there_is_no_talk_of_intervals(here):
    one, two = (mas("run", "small.yaml", "--output", f"{n}", "--set", f"seeds={n}", "--workers", "1") for n in (1, 2))
    pages = [(here / f"{n}/report.html").read_text() for n in (1, 2)]
    assert "percent, one seed: no interval, no test" in [line.strip() for line in one.output.splitlines()]
    assert "percent, mean [95 % interval over seeds], * p < 0.05 (paired, Holm)" in two.output
    for word in ("interval", "p &lt; 0.05", "fewer than five seeds"):
        assert (word in pages[0].replace("no interval", ""), word in pages[1]) == (False, True)
    assert "one seed: no interval, no test" in mas("compare", "1", "2").output
    assert "[95 % interval over seeds]" in mas("compare", "2", "2").output


def test_report_makes_it_anew(here):
    mas("run", "small.yaml", "--workers", "1", "--output", "here")
    before = (here / "here/report.html").read_bytes()
    (here / "here/report.html").unlink()
    done = mas("report", "here")
    assert done.exit_code == 0
    assert (here / "here/report.html").read_bytes() == before


def test_report_needs_no_data(here, monkeypatch):
    mas("run", "small.yaml", "--workers", "1", "--output", "here")
    monkeypatch.setattr("mas.benchmarks.datasets.load_dataset", lambda spec: pytest.fail("read the data"))
    monkeypatch.setattr("mas.benchmarks.building.load_dataset", lambda spec: pytest.fail("read the data"))
    assert mas("report", "here").exit_code == 0


def test_compare_says_what_differs(here):
    mas("run", "small.yaml", "--workers", "1", "--output", "a")
    mas("run", "small.yaml", "--workers", "1", "--output", "b", "--set", "strategies.1.lam=100", "--set", "seeds=[1]")
    done = mas("compare", "a", "b")
    assert done.exit_code == 0
    assert done.output.splitlines()[:2] == ["seeds: 2 → [1]", "mas.lam: 0.1 → 100.0"]
    (naive,) = [line for line in done.output.splitlines() if "naive" in line and "ACC" in line]
    assert [part.strip() for part in naive.strip("│").split("│")] == ["naive", "ACC", "0.0", "1", "–", "–"]


def test_compare_takes_the_first_from_the_second(here):
    for name, lam in (("a", "1e4"), ("b", "0")):
        mas("run", "small.yaml", "--workers", "1", "--output", name, "--set", f"strategies.1.lam={lam}")
    a, b = (json.loads((here / name / "cells/mas-seed0.json").read_text())["accuracy"][-1] for name in "ab")
    c, d = (json.loads((here / name / "cells/mas-seed1.json").read_text())["accuracy"][-1] for name in "ab")
    expected = 100 * (sum(b) - sum(a) + sum(d) - sum(c)) / 4
    done = mas("compare", "a", "b")
    (line,) = [line for line in done.output.splitlines() if "│ mas " in line and " ACC " in line]
    assert abs(expected) > 0.1
    assert line.split("│")[3].split()[0] == f"{expected:.1f}"


def test_compare_tells_the_values_that_were_chosen(here):
    for name, grid in (("a", "[0.1, 1]"), ("b", "[10, 100]")):
        mas("run", "small.yaml", "--workers", "1", "--output", name, "--set", f"strategies.1.lam={{select: {grid}}}")
    done = mas("compare", "a", "b")
    assert "mas.selection.options.lam: [0.1, 1.0] → [10.0, 100.0]" in done.output
    assert any(line.startswith("mas.lam: ") for line in done.output.splitlines())


def test_brackets_in_a_reason_are_shown(here, monkeypatch):
    def diverges(cell, keep_weights, checkpoints):
        row = [0.5, 0.5]
        reason = "objective is [nan, nan]"
        return Trained(Outcome(untrained=row, accuracy=[row, row], status="diverged", reason=reason, seconds=1.0))

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", diverges)
    assert "diverged (objective is [nan, nan])" in mas("run", "small.yaml", "--workers", "1").output


def test_check_prints_the_cells_and_runs_nothing(here):
    done = mas("check", "small.yaml", "--set", "seeds=[3]", "--set", "strategies.1.lam=7")
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "naive-seed3: name=naive",
        "mas-seed3: name=mas, lam=7.0, norm=squared_l2, accumulate=sum, factor=0.5, reduction=sample, "
        "parameters=all, data=train",
        "small.yaml is valid: 2 cells",
    ]
    assert not (here / "runs").exists()


def test_list_explains_every_name(here):
    done = mas("list")
    assert done.exit_code == 0
    for name in (*STRATEGIES, *DATASETS, *STREAMS, *MODELS, *DEFICITS, *PROBES):
        (line,) = [text for text in done.output.splitlines() if text.startswith(f"  {name} ")]
        assert len(line.split()) > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "smal.yaml"), "error: smal.yaml: no such file, did you mean 'small.yaml'?"),
        (
            ("run", "small.yaml", "--set", "strategies.1.lam=-1"),
            "error: --set strategies.1.lam=-1: strategies[1].lam: found -1",
        ),
        (("check", "small.yaml", "--set", "strategies.1.name=mass"), "found 'mass', did you mean 'mas'?"),
        (("report", "nowhere"), "error: nowhere: holds no config.yaml"),
        (("compare", "nowhere", "there"), "error: nowhere: holds no config.yaml"),
        (("run", "small.yaml", "--output", "small.yaml"), "error: small.yaml: is a file"),
        (("run", "small.yaml", "--output", "/proc/none"), "error: /proc/none: cannot be written"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(here, arguments, message):
    done = mas(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout in ("", "reading small.yaml\n")
    assert not (here / "runs").exists()


def test_a_diverged_cell_is_shown_in_lines_and_table(here):
    done = mas("run", "small.yaml", "--workers", "1", "--set", "training.lr=1e30", "--set", "training.optimizer=sgd")
    assert done.exit_code == 0
    assert "naive-seed0: diverged (" in done.output
    assert "2 of 2" in done.output


def test_a_failed_cell_is_said_with_exit_code_1(here, monkeypatch):
    def broken(cell, keep_weights, checkpoints):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", broken)
    done = mas("run", "small.yaml", "--workers", "1")
    assert done.exit_code == 1
    assert "error: mas-seed1: ZeroDivisionError: oh" in done.output
    assert "Traceback" not in done.output


def test_an_interrupt_says_how_to_go_on(here, monkeypatch):
    def interrupted(cell, keep_weights, checkpoints):
        raise KeyboardInterrupt

    monkeypatch.setattr("mas.experiments.engines.task.run_cell", interrupted)
    done = mas("run", "small.yaml", "--workers", "1")
    assert done.exit_code == 130
    assert "run the same command again" in done.output


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_workers_of_a_killed_run_end_too(here):
    command = [sys.executable, "-m", "mas", "run", "small.yaml", "--set", "seeds=1000", "--workers", "2"]
    run = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(workers := children(run.pid)) < 3:  # two workers and the resource tracker
        assert run.poll() is None
        time.sleep(0.2)
    while not list((here / "runs/small/cells").glob("*.json")):
        time.sleep(0.2)
    run.kill()
    run.wait()
    ends = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < ends:
        time.sleep(0.2)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_as_a_process_with_two_workers(here):
    command = [sys.executable, "-m", "mas", "run", "small.yaml", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0
    assert "4/4" in done.stdout
    assert done.stderr == ""


# The first sign of life, the closed pipe, the terminal.


def in_fresh_python(here, *arguments):
    """Return how a command ends in a new process, and the heavy modules that it has imported by then."""
    code = (
        "import atexit, sys, mas.cli\n"
        "heavy = ('torch', 'avalanche', 'numpy', 'pandas', 'matplotlib')\n"
        "atexit.register(lambda: print('heavy:', *(name for name in heavy if name in sys.modules)))\n"
        f"sys.argv = ['mas', *{arguments!r}]\n"
        "mas.cli.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=here, env=environment)


ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "smal.yaml"), "smal.yaml: no such file, did you mean 'small.yaml'?"),
        (("check", "smal.yaml"), "smal.yaml: no such file, did you mean 'small.yaml'?"),
        (("run", "broken.yaml"), "broken.yaml:1: not plain YAML: "),
        (("run", "empty.yaml"), "empty.yaml:1: found an empty file; "),
        (("run", "small.yaml", "--set", "seeds"), "--set seeds: expected key=value, "),
        (
            ("run", "small.yaml", "--set", "strategies.7.lam=1"),
            "--set strategies.7.lam=1: there is no 7 in a list of 2",
        ),
        (("run", "small.yaml", "--output", "small.yaml"), "small.yaml: is a file; expected a folder for results"),
        (("run", "small.yaml", "--workers", "0"), "Invalid value for '--workers'"),
    ],
)
def test_what_can_be_found_early_is_found_before_torch_is_imported(here, arguments, message):
    Path("broken.yaml").write_text("a: [1")
    Path("empty.yaml").write_text("")
    done = in_fresh_python(here, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "heavy:\n"


def test_the_process_ends_with_the_code_of_the_command(here):
    assert in_fresh_python(here, "--version").returncode == 0
    assert in_fresh_python(here, "no-such-command").returncode == 2


class ClosedPipe(io.StringIO):
    """An output that is closed by its reader after some lines."""

    def __init__(self, lines):
        super().__init__()
        self.left = lines

    def write(self, text):
        if self.left <= 0:
            raise BrokenPipeError
        self.left -= text.count("\n")
        return super().write(text)


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_closed_pipe_stops_a_run_as_ctrl_c_does(here, monkeypatch, capfd, lines):
    output = ClosedPipe(lines)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", output)
        with pytest.raises(SystemExit) as ended:
            app(["run", "small.yaml", "--workers", "1"])
    assert ended.value.code == 141
    error = capfd.readouterr().err
    assert error == "the output was closed: finished cells are kept: run the same command again to go on\n"
    done = len(list((here / "runs/small/cells").glob("*.json")))
    assert done == max(0, lines - 1)
    again = mas("run", "small.yaml", "--workers", "1")
    assert again.exit_code == 0
    assert "4/4 mas-seed1: finished" in again.output


@pytest.mark.parametrize("arguments", [("check", "small.yaml"), ("list",)])
def test_a_closed_pipe_ends_other_commands_in_silence(here, monkeypatch, capfd, arguments):
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", ClosedPipe(2))
        with pytest.raises(SystemExit) as ended:
            app(list(arguments))
    assert ended.value.code == 141
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_head_ends_a_run_cleanly(here, workers):
    run = [sys.executable, "-m", "mas", "run", "small.yaml", "--set", "seeds=200", "--workers", workers]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": here, "env": environment}
    with subprocess.Popen(run, **pipe) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141
    assert error == "the output was closed: finished cells are kept: run the same command again to go on\n"
    assert lines[2].startswith("1/400 ")
    assert len(list((here / "runs/small/cells").glob("*.json"))) < 400


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_on_a_terminal_there_is_a_line_for_each_running_cell(here):
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-m", "mas", "run", "small.yaml", "--workers", "2", "--set", "training.epochs=1000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen(command, stdout=child, stderr=child, cwd=here, env=environment) as process:
        os.close(child)
        shown = b""
        place = rb"-seed0 +\d+ %  experience [12]/2  epoch \d+/1000 +loss [\d.]+ +accuracy [\d.]+ %  +left 0:"
        expected = [b"naive" + place, b"mas" + place]
        while not all(re.search(pattern, shown) for pattern in expected) and (part := read_from(parent)):
            shown += part
        process.send_signal(signal.SIGINT)
        while part := read_from(parent):
            shown += part
    os.close(parent)
    assert process.returncode == 130
    text = shown.decode()
    assert "reading small.yaml" in text
    assert "4 cells to train on 2 workers" in text
    assert "0/4 cells" in text
    assert "interrupted; finished cells are kept" in text


def read_from(handle):
    """Return what a pseudo-terminal shows next; nothing once the other end is closed."""
    try:
        return os.read(handle, 4096)
    except OSError:
        return b""
