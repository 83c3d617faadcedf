"""Make every table, figure and the page of a run anew from its cells."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader

from mas.experiments.config.schema import Experiment
from mas.experiments.errors import UserError
from mas.experiments.registry import kind_of
from mas.experiments.report.drawing import png
from mas.experiments.report.sections import Headline, Page
from mas.experiments.results import Results
from mas.experiments.store import Store


def write_report(store: Store, config: Experiment, results: Results) -> Headline:
    """Write tables, figures and page; return what a terminal shows.

    Raises:
        UserError: there is no finished cell.
    """
    if not results.records:
        raise UserError(f"{store.folder}: holds no finished cell; run it first with: mas run")
    kind = kind_of(config)
    tables = kind.tables(config, results)
    pictures = {name: png(figure) for name, figure in kind.figures(config, tables).items()}
    files: dict[str, str | bytes] = {f"{name}.csv": as_csv(table) for name, table in tables.items()}
    files |= {f"figures/{name}.png": picture for name, picture in pictures.items()}
    files |= kind.files(config, results)
    files["report.html"] = _rendered(store.folder.name, kind.page(config, tables), pictures, config, results)
    with store.exclusive("report"):
        _write_files(store, files)
    return kind.headline(config, tables)


def as_csv(table: pd.DataFrame) -> str:
    """Return a table as the text of its file."""
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def _write_files(store: Store, files: Mapping[str, str | bytes]) -> None:
    """Write the files of a report; those of the report before that are no longer made are removed.

    Which files a report made is kept beside them, so that a user's own files in the folder stay.
    """
    before = store.read_json(_LIST, [], form=list[str])
    for name, content in files.items():
        store.write(name, content)
    store.write(_LIST, json.dumps(list(files), indent=2) + "\n")
    for name in set(before) - set(files):
        if _is_of_reports(store, name):
            _remove(store.folder / name)


_LIST = "report.json"
_FOLDERS = ("cells", "models", "checkpoints", "failed", "locks")
_NEVER_REMOVED = (*_FOLDERS, "config.yaml", "data.json", "environment.json", _LIST)


def _is_of_reports(store: Store, name: str) -> bool:
    """Return whether a file that a list names can be a report's: the list may have been edited."""
    folder = store.folder.resolve()
    path = (folder / name).resolve()
    return path.is_file() and path.is_relative_to(folder) and path.relative_to(folder).parts[0] not in _NEVER_REMOVED


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: is of an older report and cannot be removed ({error.strerror}); remove it") from None


def _rendered(name: str, page: Page, pictures: Mapping[str, bytes], config: Experiment, results: Results) -> str:
    loader = PackageLoader("mas.experiments.report", "templates")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    return environment.get_template("page.html.jinja").render(
        name=name,
        page=page,
        diverged=[record for record in results.records if not record.outcome.finished],
        figures={key: base64.b64encode(picture).decode() for key, picture in pictures.items()},
        config=yaml.safe_dump(config.plain(), sort_keys=False),
    )
