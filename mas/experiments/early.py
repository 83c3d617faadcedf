"""Mistakes that are found before torch is imported, which takes seconds."""

from collections.abc import Sequence
from pathlib import Path

from mas.experiments.config.yaml_source import Source
from mas.experiments.engines.registry import check_engine_name
from mas.experiments.errors import UserError


def check_early(config: Path, changes: Sequence[str] = (), output: Path | None = None, engine: str = "local") -> None:
    """Raise UserError for a file that is missing or no plain YAML, a change that goes nowhere, and a file as folder.

    Also for an engine that does not exist.

    Args:
        config: a YAML file.
        changes: ``key.key=value``.
        output: the folder for results.
        engine: its name.
    """
    check_engine_name(engine)
    Source(config, changes)
    if output is not None and output.is_file():
        raise UserError(f"{output}: is a file; expected a folder for results: choose another with --output")
