"""Several processes on one folder, and shares of a config in one folder or in several."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from mas.experiments import run
from mas.experiments.errors import UserError
from mas.experiments.events import CellEnded, CellStarted
from mas.experiments.locks import CellLocks
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.runner import run_experiment
from mas.experiments.shard import parse_shard
from mas.experiments.store import Store
from tests.experiments.builders import TEXT, made_up

RUN_CELL = "mas.experiments.engines.task.run_cell"
SELECTING = TEXT.replace("lam: 1.0", "lam: {select: [0.1, 1.0]}")

SCRIPT = """
import sys
from mas import experiments

def show(event):
    cell = getattr(event, "cell", None)
    if cell is not None:
        print(type(event).__name__, cell.id, flush=True)
    elif isinstance(event, experiments.Started):
        print("kept", event.kept, flush=True)

done = experiments.run(sys.argv[1], output=sys.argv[2], workers=int(sys.argv[3]), progress=show)
sys.exit(bool(done.failed))
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SELECTING)
    return path


@pytest.fixture(scope="module")
def alone(config_file, tmp_path_factory):
    """The folder of an ordinary run."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    run(config_file, output=folder, workers=1)
    return folder


def start(config_file, folder, workers=1):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(config_file), str(folder), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ids(config_file):
    return [cell.id for cell in Plan(load_config(config_file, try_data=False)).every_cell()]


def named(output, event):
    return [line.split()[1] for line in output.splitlines() if line.startswith(event + " ")]


def results(folder):
    return (folder / "results.csv").read_bytes()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_runs_of_one_folder_train_each_cell_once_and_end_alike(workers, config_file, alone, tmp_path):
    folder = tmp_path / "r"
    both = [start(config_file, folder, workers) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    every = ids(config_file)
    assert Counter(name for output in outputs for name in named(output, "CellStarted")) == Counter(every)
    for output in outputs:
        ended = named(output, "CellEnded")
        assert set(ended) <= set(every)
        assert len(set(ended)) == len(ended) == len(every) - int(*named(output, "kept"))
    assert results(folder) == results(alone)
    assert len(json.loads((folder / "environment.json").read_text())) == 1
    assert not list(folder.rglob(".*"))
    assert not list((folder / "locks").glob("*.json"))


def test_what_a_killed_process_held_is_done_at_once(config_file, alone, tmp_path):
    folder = tmp_path / "r"
    process = start(config_file, folder)
    for line in process.stdout:
        if line.startswith("CellStarted"):
            break
    process.kill()
    process.wait()
    process.stdout.close()
    begun, started = time.monotonic(), []
    run(config_file, output=folder, workers=1, progress=lambda e: isinstance(e, CellStarted) and started.append(e))
    assert time.monotonic() - begun < 45  # a lock of another machine would be waited for longer
    assert len(started) >= len(ids(config_file)) - 1
    assert results(folder) == results(alone)


def test_cells_of_another_process_are_waited_for_and_told_once(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(RUN_CELL, lambda cell, keep_weights, context: made_up())
    config, folder = load_config(config_file, try_data=False), tmp_path / "r"
    cell = Plan(config).every_cell()[0]
    store, locks = Store(folder), CellLocks(folder)
    folder.mkdir()
    (folder / "config.yaml").write_text("")  # the folder is a run's
    assert locks.take(cell.id)

    def end_later():
        time.sleep(1.5)
        store.save(cell, made_up(0.75).outcome)
        locks.release(cell.id)

    thread = threading.Thread(target=end_later)
    thread.start()
    told = []
    outcome = run_experiment(config, folder, workers=1, progress=told.append)
    thread.join()
    assert cell not in [event.cell for event in told if isinstance(event, CellStarted)]
    assert [event.cell for event in told if isinstance(event, CellEnded)].count(cell) == 1
    assert outcome.failed == []
    assert store.read(cell).outcome.accuracy[0] == [0.75, 0.75]


def test_a_cell_that_broke_in_another_process_is_not_tried_again(config_file, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(RUN_CELL, lambda cell, keep_weights, context: ran.append(cell.id) or made_up())
    config, folder = load_config(config_file, try_data=False), tmp_path / "r"
    *_, cell = Plan(config).every_cell()
    store = Store(folder)
    told = []

    def breaks_elsewhere(event):
        told.append(event)
        if len(told) == 3:
            store.note_failure(cell, "ValueError: oh")

    outcome = run_experiment(config, folder, workers=1, progress=breaks_elsewhere)
    assert outcome.failed == [f"{cell.id}: ValueError: oh"]
    assert cell.id not in ran
    assert [str(event) for event in told].count(f"{cell.id}: failed (ValueError: oh)") == 1
    again = run_experiment(config, folder, workers=1)  # another run tries it again
    assert (again.failed, ran[-1], store.failure(cell.id)) == ([], cell.id, None)


def test_a_result_whose_lock_was_taken_over_is_not_written(config_file, tmp_path, monkeypatch):
    config, folder = load_config(config_file, ["seeds=1"], try_data=False), tmp_path / "r"
    cell = Plan(config).every_cell()[0]
    ran = []

    def slow(one, keep_weights, context):
        ran.append(one.id)
        if one == cell:  # meanwhile another process takes the cell over, and ends it
            path = folder / "locks" / f"{cell.id}.json"
            path.write_text(path.read_text().replace('"token": "', '"token": "not-'))
            Store(folder).save(cell, made_up(0.25).outcome)
            path.unlink()
        return made_up(0.5)

    monkeypatch.setattr(RUN_CELL, slow)
    told = []
    run_experiment(config, folder, workers=1, progress=told.append)
    assert Store(folder).read(cell).outcome.accuracy[0] == [0.25, 0.25]
    assert ran.count(cell.id) == 1
    assert [event.cell for event in told if isinstance(event, CellEnded)].count(cell) == 1


def test_a_finished_record_is_parsed_once_in_a_run(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(RUN_CELL, lambda cell, keep_weights, context: made_up())
    config = load_config(config_file, try_data=False)
    run_experiment(config, tmp_path / "r", workers=1)
    parsed = []
    parse = Store._parse
    monkeypatch.setattr(Store, "_parse", lambda store, path, cell: parsed.append(cell.id) or parse(store, path, cell))
    run_experiment(config, tmp_path / "r", workers=1)
    assert Counter(parsed) == Counter(ids(config_file))


def test_a_record_that_changes_is_read_again(config_file, tmp_path):
    cell = Plan(load_config(config_file, try_data=False)).every_cell()[0]
    store = Store(tmp_path)
    store.save(cell, made_up(0.25).outcome)
    assert store.read(cell).outcome.accuracy[0] == [0.25, 0.25]
    store.save(cell, made_up(0.75).outcome)
    assert store.read(cell).outcome.accuracy[0] == [0.75, 0.75]


# Shards


def test_three_shards_in_one_folder_come_to_an_ordinary_run(config_file, alone, tmp_path):
    folder, started = tmp_path / "r", []
    note = lambda event: isinstance(event, CellStarted) and started.append(event.cell.id)  # noqa: E731
    first = [run(config_file, output=folder, workers=1, shard=(i, 3), progress=note).shard for i in (1, 2, 3)]
    assert [(one.done, one.total) for one in first] == [(3, 4), (3, 4), (4, 4)]
    assert not (folder / "report.html").exists()
    again = [run(config_file, output=folder, workers=1, shard=f"{i}/3", progress=note).shard for i in (1, 2)]
    assert [(one.done, one.left) for one in again] == [(4, 1), (4, 0)]
    assert (folder / "report.html").exists()
    assert Counter(started) == Counter(ids(config_file))
    assert results(folder) == results(alone)


def test_a_shard_does_every_nth_cell_and_says_what_waits_for_others(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(RUN_CELL, lambda cell, keep_weights, context: made_up())
    done = run(config_file, output=tmp_path / "one", workers=1, shard="2/3")
    every = ids(config_file)
    assert len(every) == 12
    own = every[1::3]
    ready = [name for name in own if not name.startswith("mas-")]  # of mas, λ is still to be chosen
    assert Store(tmp_path / "one").finished_ids() == set(ready)
    assert str(done.shard) == (
        f"shard 2/3: {len(ready)} of 4 cells are done; {4 - len(ready)} wait for values that other shards try: run "
        f"this again when those are done; the folder lacks {12 - len(ready)} of the config's cells, so there is no "
        "report yet: once all are there, mas merge or a last mas run makes it"
    )


@pytest.mark.parametrize("shard", ["0/3", "a", "4/3", "1/2/3", "", (0, 3), (4, 3), "-1/3", "1/0"])
def test_a_shard_that_there_is_not_is_one_line(shard):
    with pytest.raises(UserError, match=r"^shard: found .*; expected i/n with 1 ≤ i ≤ n, such as 1/3$"):
        parse_shard(shard)


# A folder belongs to one config


@pytest.fixture(scope="module")
def owned(config_file, tmp_path_factory):
    """A folder of a config whose cells are not begun: what is refused is known from the config alone."""
    folder = tmp_path_factory.mktemp("runs") / "owned"
    config = load_config(config_file, try_data=False)
    Store(folder).claim(config.plain(), {}, trains=False)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.epochs=3"], "training.epochs is 1 there and 3 here; choose another folder"),
        (["seeds=1"], "seeds is 2 there and 1 here; choose another folder"),
        (["seeds=[0, 5]"], r"seeds is 2 there and \[0, 5\] here; choose another folder"),
        (["seeds=3"], "seeds is 2 there and 3 here; add cells to it with --extend, or choose another folder"),
        (["strategies.1.label=all"], "strategies.1.label is None there and all here; choose another folder"),
        (["strategies.3.lam=7"], "strategies.3.lam is 100.0 there and 7.0 here; choose another folder"),
    ],
)
def test_another_config_is_refused_with_the_first_difference(changes, message, config_file, owned):
    before = (owned / "config.yaml").read_bytes()
    config = load_config(config_file, changes, try_data=False)
    with pytest.raises(UserError, match=f"^{owned}: is of another config: {message}"):
        run_experiment(config, owned, workers=1)
    assert (owned / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.epochs=3"], "mas~lam=0.1-seed1000: training.epochs is 1 there and 3 here"),
        (["seeds=1"], "this config has no cell naive-seed1"),
        (["strategies.1.label=all"], "this config has no cell joint-seed0"),
        (["strategies.2.lam={select: [0.1, 2]}"], "this config has no cell mas~lam=1.0-seed1000"),
        (["strategies.2.lam={select: [0.1, 1, 2]}"], "mas-seed0: selection.options.lam is"),
    ],
)
def test_an_extension_keeps_every_cell_as_it_was(changes, message, config_file, owned):
    config = load_config(config_file, changes, try_data=False)
    with pytest.raises(UserError, match=f"^{owned}: cannot be extended: {message}"):
        run_experiment(config, owned, workers=1, extend=True)


def test_what_no_result_depends_on_may_change(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(RUN_CELL, lambda cell, keep_weights, context: made_up())
    run_experiment(load_config(config_file, try_data=False), tmp_path / "r", workers=1)
    changes = [f"data_root={tmp_path}", "seeds=[0, 1]"]
    again = run_experiment(load_config(config_file, changes, try_data=False), tmp_path / "r", workers=1)
    assert again.kept == 12
