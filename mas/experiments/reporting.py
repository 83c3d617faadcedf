"""Make every table, figure and the page of a run anew from its cells."""

import base64
from collections.abc import Mapping

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
    _write_tables(store, tables)
    _write_figures(store, pictures)
    page = _rendered(store.folder.name, kind.page(config, tables), pictures, config, results)
    store.write("report.html", page)
    return kind.headline(config, tables)


def _write_tables(store: Store, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as CSV; those of before that are no longer made go."""
    for name, table in tables.items():
        store.write(f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    for path in store.folder.glob("*.csv"):
        if path.stem not in tables:
            path.unlink()


def _write_figures(store: Store, pictures: Mapping[str, bytes]) -> None:
    """Write figures as PNG; those of before that are no longer drawn go."""
    for name, picture in pictures.items():
        store.write(f"figures/{name}.png", picture)
    for path in (store.folder / "figures").glob("*.png"):
        if path.stem not in pictures:
            path.unlink()


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
