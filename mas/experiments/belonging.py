"""A folder belongs to one config: another one is refused, unless it adds cells to those of the folder's config."""

from collections.abc import Mapping
from typing import Any

import yaml

from mas.experiments.cell import Cell
from mas.experiments.config.schema import Experiment
from mas.experiments.errors import UserError
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.store import Store, first_difference

NOT_COMPARED = frozenset({"data_root", "logging", "resources"})
"""Keys of a config on which no result depends: where data are, what is logged, what a cell may use."""

_OTHERWISE = "choose another folder with --output, or delete this one"


def refuse_other_config(store: Store, plan: Plan, *, extend: bool = False) -> None:
    """Raise if a folder belongs to another config.

    Args:
        store: the folder; one without a config belongs to none.
        plan: of the config that asks for it.
        extend: allow a config that has every cell of the folder's config, with the same settings, and more.

    Raises:
        UserError: with the first difference.
    """
    difference = config_difference(store, plan.config)
    if difference is None:
        return
    known = _read(plain_config(store) or {})
    changed = "the folder's config cannot be read" if known is None else _changed_cell(Plan(known), plan)
    if extend and changed is None:
        return
    if extend:
        raise UserError(f"{store.folder}: cannot be extended: {changed}; {_OTHERWISE}")
    adding = "add cells to it with --extend, or " if changed is None else ""
    raise UserError(f"{store.folder}: is of another config: {difference}; {adding}{_OTHERWISE}")


def config_difference(store: Store, config: Experiment) -> str | None:
    """Return in words the first difference of a folder's config; None if there is none, or no config there."""
    there = plain_config(store)
    if there is None or compared(there) == compared(config.plain()):
        return None
    known = _read(there)
    return _difference(there if known is None else known.plain(), config)


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a plain config on which results depend."""
    return {key: value for key, value in config.items() if key not in NOT_COMPARED}


def plain_config(store: Store) -> dict[str, Any] | None:
    """Return the config of a folder as it is written there; None if there is none that can be read."""
    path = store.folder / "config.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return data if isinstance(data, dict) and "experiment" in data else None


def _read(config: Mapping[str, Any]) -> Experiment | None:
    """Return a plain config with the defaults of this version; None if this version cannot read it."""
    try:
        return load_config(compared(config), try_data=False)
    except UserError:
        return None


def _difference(there: Mapping[str, Any], config: Experiment) -> str | None:
    """Return the first difference in words; seeds are the same as a number and as a list."""
    here = config.plain()
    old, new = compared(there), compared(here)
    for one in (old, new):
        if isinstance(one.get("seeds"), int):
            one["seeds"] = list(range(one["seeds"]))
    if old == new:
        return None
    key, before, now = first_difference(old, new)
    if key == "seeds":
        before, now = there.get("seeds"), here.get("seeds")
    return f"{key} is {before} there and {now} here"


def _changed_cell(there: Plan, here: Plan) -> str | None:
    """Return in words the first cell of a plan that another one does not have, or has with other settings."""
    new = {cell.id: cell for cell in here.every_cell()}
    for cell in there.every_cell():
        if cell.id not in new:
            return f"this config has no cell {cell.id}"
        if difference := _settings_differ(cell, new[cell.id]):
            return f"{cell.id}: {difference}"
    return None


def _settings_differ(there: Cell, here: Cell) -> str | None:
    if there.settings == here.settings:
        return None
    old, new = there.settings.plain(), here.settings.plain()
    if old == new:
        return None
    key, before, now = first_difference(old, new)
    return f"{key} is {before} there and {now} here"
