"""What the README and the docs say to type works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mas.strategies.probes import ProbeRow

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TEXTS = README + (ROOT / "docs/importance.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXTS, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["plain", "avalanche", "probes", "importance"])
def test_examples_run(example, capfd):
    names: dict = {}
    exec(compile(example, "example", "exec"), names)  # noqa: S102
    assert len(capfd.readouterr().out.splitlines()) < 15
    if "probe" in names:
        assert {row.epoch for row in names["probe"].rows} == {0, 5, 10}
        return
    plugins = names["strategy"].plugins if "strategy" in names else []
    penalties = [names[name] for name in names if name == "penalty"] + [
        plugin.penalty for plugin in plugins if hasattr(plugin, "penalty")
    ]
    assert penalties
    assert all(value.sum() > 0 for penalty in penalties for value in penalty.importance.values())


def printed(example):
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True, cwd=ROOT)
    assert len((done.stdout + done.stderr).splitlines()) < 15, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_avalanche_example_prints_accuracies_and_no_flood():
    *experiences, stream = (line.rsplit(" ", 1) for line in printed(EXAMPLES[1]))
    assert [metric.rpartition("/")[2] for metric, _ in experiences] == [f"Exp00{i}" for i in range(5)]
    values = [float(value) for _, value in experiences]
    assert stream[0].startswith("Top1_Acc_Stream")
    assert min(values) <= float(stream[1]) <= max(values)
    assert float(stream[1]) > 0.6  # it has learned something; chance is 0.5


def test_the_probe_example_prints_its_rows_and_no_flood():
    rows = [line.split() for line in printed(EXAMPLES[2])]
    looks = (("fisher_trace", "1"), ("fisher_trace", "3"), ("dormant_units", "2"))
    assert [(row[1], row[3], row[4]) for row in rows] == [(epoch, *at) for epoch in ("0", "5", "10") for at in looks]
    (comment,) = re.findall(r"print\(\*row\)  # (.*)", EXAMPLES[2])
    assert re.sub(r" \(.*?\)", "", comment).split(", ") == list(ProbeRow._fields)


def test_the_library_example_needs_no_avalanche():
    assert "avalanche" not in EXAMPLES[0]


def test_commands_and_files_that_it_names_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+) ", README)) <= targets | {"this"}
    for path in re.findall(r"(?:configs|docs|mas|tests)/[\w./-]+\w", README):
        assert (ROOT / path).exists(), path
