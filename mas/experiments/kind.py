"""What a kind of experiment provides: everything that only this kind knows, in one folder under ``kinds``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.cell import CellSettings
from mas.experiments.config.schema import Experiment, Selection
from mas.experiments.config.yaml_source import Source
from mas.experiments.report.sections import Headline, Page, Score
from mas.experiments.results import Results
from mas.experiments.trial import try_training

C = TypeVar("C", bound=Experiment)
Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class PlannedRun:
    """The settings of a cell for each seed, such as one that trains a network, and the label of their results."""

    label: str
    settings: CellSettings


@dataclass(frozen=True)
class Kind(Generic[C]):
    """One kind of experiment: a config model, and functions of it.

    A config is checked and planned. Its cells, one for each planned run and seed, are trained. Tables are
    made from their records; figures and the page are made from the tables alone.

    Attributes:
        name: as in ``experiment: name``.
        config: the model of what a config may say.
        plan: the runs, in the order of the tables; labels are unique.
        tables: the tables of a run, by the names of their files.
        page: the content of ``report.html``.
        headline: the short form for the terminal.
        score: the number that is drawn over a swept option; None if there is none.
        figures: by the names of their files.
        files: further files of a report, such as arrays, by name.
        check: raises UserError for what the types cannot say.
        trial: raises UserError if the parts of a config, with the settings of its cells, cannot be built.
        selection: the data and seeds on which values are chosen by ACC; None if this kind cannot choose.
        compare: the differences of two runs, or None if they cannot be compared.
        renamed: keys of the config that have an older spelling: old -> new.
    """

    name: str
    config: type[C]
    plan: Callable[[C], list[PlannedRun]]
    tables: Callable[[C, Results], dict[str, pd.DataFrame]]
    page: Callable[[C, Tables], Page]
    headline: Callable[[C, Tables], Headline]
    score: Callable[[Tables], Score | None] = lambda tables: None
    figures: Callable[[C, Tables], dict[str, Figure]] = lambda config, tables: {}
    files: Callable[[C, Results], dict[str, bytes]] = lambda config, results: {}
    check: Callable[[C, Source], None] = lambda config, source: None
    trial: Callable[[Any, Sequence[CellSettings], Source], None] = try_training
    selection: Callable[[C], Selection | None] = lambda config: None
    compare: Callable[[Results, Results], pd.DataFrame] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
