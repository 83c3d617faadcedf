"""The runs that a page of results shows, in their order: ``index.yaml`` beside their tables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Listed:
    """What is said of a run beside its tables, which are in the folder of its name.

    Attributes:
        name: of the folder.
        title: the heading.
        about: what was trained on what.
        command: by which the run is made.
        remarks: what the tables show, in words.
        literature: ACC in percent that others report, by label.
    """

    name: str
    title: str
    about: str
    command: str
    remarks: tuple[str, ...] = ()
    literature: Mapping[str, float] = field(default_factory=dict)


def listed_runs(folder: Path) -> list[Listed]:
    """Return the runs that ``index.yaml`` lists and whose tables are there."""
    entries = yaml.safe_load((folder / "index.yaml").read_text(encoding="utf-8"))
    runs = [_listed(**entry) for entry in entries]
    return [run for run in runs if (folder / run.name).is_dir()]


def machine(folder: Path) -> str:
    """Return on what a run was made."""
    *_, last = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return f"{last['cores']} cores of {last['processor']}, torch {last['packages']['torch']}"


def _listed(
    *,
    name: str,
    title: str,
    about: str,
    command: str,
    remarks: list[str] | None = None,
    literature: Mapping[str, float] | None = None,
) -> Listed:
    stripped = tuple(remark.strip() for remark in remarks or ())
    return Listed(name, title, about.strip(), command, stripped, literature or {})
