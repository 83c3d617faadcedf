"""The same cells anywhere: engines give the same results, survive what dies beneath them, and leave nothing behind."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from mas import experiments
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.config.schema import Resources
from mas.experiments.engines import registry
from mas.experiments.engines.engine import EngineOptions
from mas.experiments.engines.local import run_local
from mas.experiments.engines.mailbox import Letter, Mailbox
from mas.experiments.engines.modules import modules_of, put_on_path
from mas.experiments.engines.task import Failed, Task, TaskQueue
from mas.experiments.engines.threads import ONE_THREAD
from mas.experiments.errors import UserError
from mas.experiments.training import Trained
from tests.experiments.builders import TEXT, first_cell

ROOT = Path(__file__).resolve().parents[2]
RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed; pip install '.[ray]'")
CONFIG = yaml.safe_load(TEXT) | {"strategies": [{"name": "naive"}, {"name": "mas"}, {"name": "replay", "mem_size": 20}]}


def is_of_ray(name):
    return name.startswith("RAY") or name == "PYTHONBREAKPOINT"


@pytest.fixture(scope="module", autouse=True)
def one_token():
    """Let every Ray of these tests have one token: a process reads it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture(scope="module")
def on_one_worker(tmp_path_factory):
    """The folder of a run in this process."""
    return experiments.run(CONFIG, output=tmp_path_factory.mktemp("one") / "run", workers=1).folder


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory):
    """The folder of a run on Ray, the events, and what was left behind of environment, handlers and processes."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed; pip install '.[ray]'")
    from tools.node_processes import ray_processes

    processes, environment, handler = ray_processes(), dict(os.environ), signal.getsignal(signal.SIGTERM)
    hook, events = sys.excepthook, []
    output = tmp_path_factory.mktemp("ray") / "run"
    select = CONFIG | {"selection": {"seeds": [7], "validation": 0.2}}
    select["strategies"] = [*CONFIG["strategies"], {"name": "ewc", "label": "best", "lam": {"select": [1.0, 10.0]}}]
    experiments.run(select, output=output, workers=2, engine="ray", progress=events.append)
    left = {
        "environment": dict(os.environ) == environment,
        "handler": signal.getsignal(signal.SIGTERM) is handler,
        "excepthook": sys.excepthook is hook,
        "processes": ray_processes() - processes,
    }
    return output, events, left


def results_of(folder, labels=("naive", "mas", "replay")):
    lines = (folder / "results.csv").read_text().splitlines()
    return [line for line in lines if line.startswith(("label", *(f"{label}," for label in labels)))]


def test_two_workers_give_the_same_bytes(on_one_worker, tmp_path):
    run = experiments.run(CONFIG, output=tmp_path / "run", workers=2)
    assert (run.folder / "results.csv").read_bytes() == (on_one_worker / "results.csv").read_bytes()


def test_ray_gives_the_same_results(on_one_worker, on_ray):
    folder, _, _ = on_ray
    found = results_of(folder)
    assert len(found) == 1 + 3 * 2 * 6  # two accuracies before training and after each of two experiences
    assert found == results_of(on_one_worker)


def test_ray_is_started_once_for_choices_and_what_is_chosen(on_ray):
    folder, events, _ = on_ray
    assert [type(event).__name__ for event in events].count("Started") == 1
    assert len(list((folder / "cells").glob("best*.json"))) == 4  # two tries with one seed, and two seeds


def test_ray_reports_what_its_cells_report(on_ray):
    _, events, _ = on_ray
    names = [(type(event).__name__, event.cell.id) for event in events[1:]]
    tested = [event for event in events if isinstance(event, experiments.CellTested)]
    for name in ("naive-seed0", "mas-seed1"):
        assert names.index(("CellStarted", name)) < names.index(("CellEnded", name))
        assert [event.trained_on for event in tested if event.cell.id == name] == [-1, 0, 1]


def test_ray_leaves_nothing_behind(on_ray):
    _, _, left = on_ray
    assert left == {"environment": True, "handler": True, "excepthook": True, "processes": set()}


def test_a_finished_folder_starts_no_ray(on_ray, monkeypatch):
    folder, _, _ = on_ray
    config = folder / "config.yaml"
    monkeypatch.setitem(registry.ENGINES, "ray", "tests.experiments.test_engines:BROKEN")
    assert not experiments.run(config, output=folder, engine="ray").failed


def _nowhere(options):
    raise AssertionError("was opened")


BROKEN = registry.engine_named("local").__class__(lambda options: None, _nowhere)


def dying_task(tmp_path, label, dies):
    marks = tmp_path / f"marks-{label}"
    marks.mkdir()
    options = {"marks": str(marks), "dies": dies}
    dataset = {"name": "import", "function": "tests.experiments.dying:two_shades", **options}
    cell = first_cell({"name": "naive", "label": label}, benchmark={"dataset": dataset, "experiences": 2})
    return Task(cell, False, None), marks


def run_dying(run, tmp_path):
    tasks = [dying_task(tmp_path, "well", 0), dying_task(tmp_path, "once", 1), dying_task(tmp_path, "always", 100)]
    results = {task.cell.label: found for task, found in run(TaskQueue([task for task, _ in tasks]))}
    deaths = {task.cell.label: len(list(marks.iterdir())) for task, marks in tasks}
    return results, deaths


def assert_retried(results, deaths, words):
    assert deaths == {"well": 0, "once": 1, "always": 2}
    assert isinstance(results["well"], Trained)
    assert isinstance(results["once"], Trained)
    assert isinstance(results["always"], Failed)
    assert re.match(words, results["always"].reason), results["always"].reason


def test_a_cell_that_ends_its_process_is_begun_again_once_and_others_finish(tmp_path):
    results, deaths = run_dying(lambda queue: run_local(queue, workers=2), tmp_path)
    assert_retried(results, deaths, r"its process died 2 times, the last time with exit code 7; run again with fewer")


@RAY
def test_a_cell_that_ends_its_process_on_ray_is_begun_again_once_and_others_finish(tmp_path):
    options = EngineOptions(2, functions=["tests.experiments.dying:two_shades"])
    with registry.engine_named("ray").open(options) as opened:
        results, deaths = run_dying(lambda queue: opened.run(queue, lambda event: None), tmp_path)
    assert_retried(results, deaths, r"its process died 2 times, the last time: .*; run again with fewer")


def test_workers_have_one_thread_and_the_parent_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    script = tmp_path / "shown.py"
    script.write_text(
        "import os\nfrom tests.experiments.dying import two_shades\n"
        "def shown(folder):\n"
        f"    names = {sorted(ONE_THREAD)}\n"
        "    open(f'{folder}/{os.getpid()}', 'w').write(' '.join(os.environ.get(name, '-') for name in names))\n"
        "    return two_shades()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = tmp_path / "seen"
    seen.mkdir()
    dataset = {"name": "import", "function": "shown:shown", "folder": str(seen)}
    cell = first_cell("naive", benchmark={"dataset": dataset, "experiences": 2})
    before = dict(os.environ)
    for path in seen.iterdir():
        path.unlink()  # of this process, which has read the config
    tasks = [Task(cell, False, None), Task(cell.__class__("other", 0, cell.settings), False, None)]
    assert all(isinstance(found, Trained) for _, found in run_local(TaskQueue(tasks), workers=2))
    assert {path.read_text() for path in seen.iterdir()} == {" ".join("1" for _ in ONE_THREAD)}
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"engine": "rey"}, "engine: found 'rey'; allowed: local, ray"),
        ({"address": "auto"}, "address: found 'auto' with engine local"),
        (
            {"engine": "ray", "address": "nowhere"},
            "address: found 'nowhere'; expected auto, IP:PORT or ray://HOST:PORT",
        ),
        ({"engine": "ray", "address": "127.0.0.1:1"}, "address: no Ray cluster answers at 127.0.0.1:1"),
        ({"engine": "ray", "address": "ray://127.0.0.1:1"}, "address: no Ray cluster answers at ray://127.0.0.1:1"),
    ],
)
@RAY
def test_a_wrong_engine_or_address_is_one_line_at_once(own, line, tmp_path):
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        experiments.run(CONFIG, output=tmp_path / "run", **own)
    assert len(caught.value.lines) == 1
    assert str(caught.value).startswith(line)
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "run").exists()


def test_ray_that_is_not_installed_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ray is not installed; install it with: pip install 'memory-.*\[ray\]'"):
        experiments.run(CONFIG, output=tmp_path / "run", engine="ray")


@pytest.mark.parametrize(
    ("device", "gpus", "line"),
    [
        ("cuda", 0, "resources.gpus: found 0 with training.device=cuda"),
        ("cuda:1", 1, "training.device: found 'cuda:1'"),
    ],
)
@RAY
def test_a_gpu_that_ray_would_not_give_is_refused(device, gpus, line):
    with pytest.raises(UserError, match=re.escape(line)):
        registry.engine_named("ray").check(EngineOptions(resources=Resources(gpus=gpus), devices=[device]))


@RAY
@pytest.mark.parametrize(
    ("resources", "room"),
    [
        ({}, 6),
        ({"cpus": 2}, 3),
        ({"cpus": 0.5}, 12),
        ({"gpus": 1}, 2),
        ({"gpus": 0.3}, 4),
        ({"cpus": 0.5, "gpus": 0.3}, 6),
        ({"cpus": 1, "gpus": 2}, 1),
    ],
)
def test_room_is_counted_node_by_node(resources, room):
    from mas.experiments.engines.ray_cluster import room_for

    class Ray:
        @staticmethod
        def nodes():
            sizes = [({"CPU": 4.0, "GPU": 2.0}, True), ({"CPU": 2.0}, True), ({"CPU": 64.0, "GPU": 8.0}, False)]
            return [{"Resources": size, "Alive": alive} for size, alive in sizes]

    assert room_for(Ray, Resources(**resources)) == room


@pytest.mark.parametrize("resources", [{"cpus": 0}, {"gpus": -1}, {"gpus": 1.5}, {"cpu": 1}])
def test_resources_that_cannot_be_are_refused(resources, tmp_path):
    with pytest.raises(UserError, match="resources"):
        experiments.run(CONFIG | {"resources": resources}, output=tmp_path)


def test_resources_enter_no_cell():
    assert first_cell("naive", resources={"cpus": 2, "gpus": 0.5}) == first_cell("naive")


def test_modules_beside_are_sent_and_can_be_imported(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "ours_of_test").mkdir(parents=True)
    (here / "ours_of_test" / "__init__.py").write_text("")
    (here / "ours_of_test" / "deep.py").write_text("VALUE = 41\n")
    (here / "entry_of_test.py").write_text("from ours_of_test.deep import VALUE\n\ndef made():\n    return VALUE + 1\n")
    monkeypatch.syspath_prepend(str(here))
    modules = modules_of(["entry_of_test:made", "torch.nn:Linear", "mas.importance:mas_importance", "no_such_module:x"])
    assert sorted(modules.files) == ["entry_of_test.py", "ours_of_test/__init__.py", "ours_of_test/deep.py"]
    code = (
        "import pickle, sys, pathlib; from mas.experiments.engines.modules import *; "
        "put_on_path(pickle.load(sys.stdin.buffer), pathlib.Path(sys.argv[1])); import entry_of_test; "
        "print(entry_of_test.made(), entry_of_test.__file__.startswith(sys.argv[1]))"
    )
    import pickle

    command = [sys.executable, "-c", code, str(there)]
    done = subprocess.run(command, input=pickle.dumps(modules), capture_output=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [b"42", b"True"]
    put_on_path(modules, there)
    sys.path.remove(str(there))


def test_a_mailbox_keeps_each_letter_and_the_newest_checkpoint_of_each_cell():
    mailbox = Mailbox()
    assert not mailbox.exchange(Letter("a", "n", b"1", "old"))
    assert not mailbox.exchange(Letter("a", "n", b"2", "new"))
    mailbox.exchange(Letter("b", "n", b"3"))
    found = mailbox.collect()
    assert [letter.events for letter in found if letter.events] == [b"1", b"2", b"3"]
    assert [letter.checkpoint for letter in found if letter.checkpoint] == ["new"]
    assert mailbox.collect() == []
    mailbox.stop()
    assert mailbox.exchange(Letter("a", "n", b""))


LONG = CONFIG | {"strategies": [{"name": "naive"}], "training": {"epochs": 3000, "batch_size": 8}, "seeds": 3}


def command_line(tmp_path, config, *more):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "mas",
        "run",
        str(path),
        "--output",
        str(tmp_path / "run"),
        "--engine",
        "ray",
        *more,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment
    )


@RAY
def test_ctrl_c_on_ray_leaves_checkpoints_and_no_process(tmp_path):
    from tools.node_processes import ray_processes

    before = ray_processes()
    process = command_line(tmp_path, LONG, "--workers", "2")
    states = tmp_path / "run" / "locks"
    end = time.monotonic() + 100
    while time.monotonic() < end and sum("share" in path.read_text() for path in states.glob("*")) < 2:
        time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "interrupted; finished cells are kept" in output
    assert time.monotonic() - begun < 8
    saved = [Checkpoints(folder).newest_file() for folder in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 2
    assert None not in saved
    wait_until(lambda: not ray_processes() - before)
    assert not ray_processes() - before


def wait_until(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.2)


@RAY
@pytest.mark.slow
def test_a_node_that_is_killed_changes_no_result(tmp_path, monkeypatch):
    from tools.node_processes import node_processes, ray_processes

    before = ray_processes()
    monkeypatch.setattr("mas.experiments.engines.ray.BRING_BACK", 0.3)
    config = CONFIG | {"training": {"epochs": 120, "batch_size": 16}, "seeds": 2}
    ended, brought = [], []
    put = Checkpoints.put
    monkeypatch.setattr(Checkpoints, "put", lambda self, file: (brought.append(file.number), put(self, file))[1])
    with node_processes(2) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)

        def show(event):
            if isinstance(event, experiments.CellEnded):
                ended.append(event.status)
                if len(ended) == 1:
                    cluster.kill_node(1)

        run = experiments.run(config, output=tmp_path / "ray", engine="ray", address=cluster.address, progress=show)
    assert not run.failed
    assert ended == ["finished"] * 6
    assert brought
    local = experiments.run(config, output=tmp_path / "local", workers=1)
    assert (run.folder / "results.csv").read_bytes() == (local.folder / "results.csv").read_bytes()
    wait_until(lambda: not ray_processes() - before)
    assert not ray_processes() - before
