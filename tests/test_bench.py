"""The speed table can be made, and says what is in its JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.page import page, summary
from tools.bench.timing import ratios

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_and_the_readme_are_the_json():
    results = json.loads((DOCS / "benchmarks.json").read_text())
    assert (DOCS / "benchmarks.md").read_text() == page(results)
    assert summary(results) in (DOCS.parent / "README.md").read_text()


@pytest.mark.slow
def test_a_quick_run_fills_every_table(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench", "--quick", "--repeats", "2", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads((tmp_path / "benchmarks.json").read_text())
    assert done.stdout == (tmp_path / "benchmarks.md").read_text() == page(results)
    for row in results["importance"]["cpu"]:
        assert row["note"] == ""
        exact = row["way"].startswith(("here", "vmap", "BackPACK", "single"))
        if exact and "error" in row:
            assert row["error"] < 1e-5
            assert row["share"] == pytest.approx(1.0, rel=1e-5)
    assert {row["tasks"] for row in results["step"]["cpu"]} == {1, 3}
    assert [row["way"] for row in results["data"]["cpu"]][:2] == ["bare loop", "here"]
    assert all(row["mb"] >= 0 for row in results["memory"]["cpu"])
    ways = {row["way"]: row["target"] for row in results["task2vec"]["cpu"]}
    assert ways == {"plain pass": None, "embedding, Hutchinson": 1.6, "features and head": None}


def test_ratios_are_to_the_first_way(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock) ** 2)  # ever longer: 1, 5, 9, 13, … seconds
    found = ratios({"plain": lambda: None, "slow": lambda: None}, repeats=3)
    assert found["plain"] == {"ms": 9e3, "ratio": 1.0, "low": 1.0, "high": 1.0}
    assert found["slow"] == {"ms": 13e3, "ratio": 13 / 9, "low": 21 / 17, "high": 5.0}
