"""The figures of the structure are those of the sources."""

import ast

import pytest

from tools.structure import asks_config, count, source_files, table

SOURCE = '''"""A module."""

from typing import Any

# a comment
def told(config: Any) -> Any:
    """Give
    two lines.
    """
    if isinstance(config, dict):
        return getattr(config.benchmark, "scenario", None)

    return config
'''


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "mas/experiments").mkdir(parents=True)
    (tmp_path / "strategies").mkdir()
    (tmp_path / "mas/experiments/told.py").write_text(SOURCE)
    (tmp_path / "strategies/long.py").write_text("x = 1\n" * 301)
    (tmp_path / "mas/strategies").symlink_to("../strategies")
    return tmp_path


def test_a_file_is_counted(tree):
    found = count(tree / "mas/experiments/told.py")
    assert (found.functions, found.lines, found.code, found.anys) == (1, 13, 5, 3)
    assert (found.config_questions, found.give) == (2, 1)
    assert found.nodes == sum(1 for _ in ast.walk(ast.parse(SOURCE)))


def test_links_are_counted_once(tree):
    assert [path.name for path in source_files(tree)] == ["told.py", "long.py"]
    rows = dict(line.strip("| ").split(" | ") for line in table(tree).splitlines())
    assert (rows["files"], rows["lines of code"], rows["files over 300 lines"]) == ("2", "306", "1")


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("isinstance(self.config, Kind)", True),
        ("getattr(config, 'probes', [])", True),
        ("getattr(config, 'probes')", False),
        ("isinstance(value, Kind)", False),
        ("value.isinstance(config, Kind)", False),
    ],
)
def test_questions_to_a_config_are_found(text, asks):
    assert asks_config(ast.parse(text, mode="eval").body) == asks


def test_a_folder_without_sources_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="holds no Python sources"):
        table(tmp_path)
