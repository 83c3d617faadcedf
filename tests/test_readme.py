"""What the README and the docs say to type works."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TEXTS = README + (ROOT / "docs/importance.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXTS, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["plain", "avalanche", "probes", "importance"])
def test_examples_run(example):
    names: dict = {}
    exec(compile(example, "example", "exec"), names)  # noqa: S102
    if "probe" in names:
        assert {row.epoch for row in names["probe"].rows} == {0, 5, 10}
        return
    plugins = names["strategy"].plugins if "strategy" in names else []
    penalties = [names[name] for name in names if name == "penalty"] + [
        plugin.penalty for plugin in plugins if hasattr(plugin, "penalty")
    ]
    assert penalties
    assert all(value.sum() > 0 for penalty in penalties for value in penalty.importance.values())


def test_the_library_example_needs_no_avalanche():
    assert "avalanche" not in EXAMPLES[0]


def test_commands_and_files_that_it_names_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+) ", README)) <= targets | {"this"}
    for path in re.findall(r"(?:configs|docs|mas|tests)/[\w./-]+\w", README):
        assert (ROOT / path).exists(), path
