"""Mistakes that are found before torch is imported, which takes seconds."""

from collections.abc import Sequence
from pathlib import Path

from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.experiments.shard import parse_shard


def check_early(
    config: Path, changes: Sequence[str] = (), output: Path | None = None, *, shard: str | None = None
) -> None:
    """Raise UserError for a file that is missing or no plain YAML, a change that goes nowhere, and other such mistakes.

    Args:
        config: a YAML file.
        changes: ``key.key=value``.
        output: the folder for results.
        shard: such as ``1/3``.
    """
    parse_shard(shard)
    Source(config, changes)
    if output is not None and _is_file(output):
        raise UserError(f"{output}: is a file; expected a folder for results: choose another with --output")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long: the store says so
        return False
