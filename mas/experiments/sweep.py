"""A sweep: what any kind of experiment does for one config, done for each combination of the swept values.

The runs of all combinations are one list. Runs of equal settings are one run: its label carries only the values on
which its settings depend. Tables are made for each combination by itself, as if it had been run alone, and joined.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.cell import Cell, CellSettings, file_name
from mas.experiments.config.checks import check_number_of_runs
from mas.experiments.config.schema import Experiment
from mas.experiments.config.sweep import SWEEP
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.experiments.kind import Kind, PlannedRun, Tables
from mas.experiments.report.drawing import blank, colour, legend_beside
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.results import Results, Tried

MAX_SHOWN = 12
"""Combinations with a section each on the page, and lines in a figure; tables have all."""

_MANY_DECADES = 30  # a greater ratio of values is drawn on a logarithmic axis

Values = dict[str, Any]  # by the path of each swept option


def swept(kind: Kind[Any]) -> Kind[Any]:
    """Return the kind that does for each combination of a config what ``kind`` does for one."""
    own = _Swept(kind)
    return replace(
        kind,
        plan=own.plan,
        tables=own.tables,
        page=own.page,
        headline=own.headline,
        figures=own.figures,
        files=own.files,
        check=own.check,
    )


class SweptTables(dict[str, pd.DataFrame]):
    """The tables of all combinations, joined, with a column for each swept option.

    Attributes:
        parts: the tables of each combination that has any, by its number.
    """

    def __init__(self, joined: Mapping[str, pd.DataFrame], parts: Mapping[int, dict[str, pd.DataFrame]]):
        super().__init__(joined)
        self.parts = parts


@dataclass(frozen=True)
class _Swept:
    """What a kind provides, for configs with a sweep."""

    kind: Kind[Any]

    def check(self, config: Experiment, source: Source) -> None:
        """Raise UserError for what is wrong with a combination."""
        for number, (_, own) in enumerate(config.combinations):
            self.kind.check(own, source.combination(number))
        check_number_of_runs((SWEEP,), len(self.plan(config)), source)

    def plan(self, config: Experiment) -> list[PlannedRun]:
        """Return the runs of all combinations, each once."""
        plans = _plans(self.kind, config)
        runs: dict[str, PlannedRun] = {}
        for labels, plan in zip(_labels(config, plans), plans, strict=True):
            for label, settings in plan.items():
                run = runs.setdefault(labels[label], PlannedRun(labels[label], settings))
                if run.settings != settings:
                    raise UserError(f"{SWEEP}: two runs would have the label {run.label!r}; give other values")
        return list(runs.values())

    def tables(self, config: Experiment, results: Results) -> SweptTables:
        """Return the tables of all combinations, joined."""
        parts = {
            number: self.kind.tables(own, part)
            for number, own, part in self._parts(config, results)
            if part.records or part.tries
        }
        return SweptTables(_joined(config, parts), parts)

    def files(self, config: Experiment, results: Results) -> dict[str, bytes]:
        """Return further files of a report; their names carry the values."""
        made = {}
        for number, own, part in self._parts(config, results):
            if part.records:
                for name, content in self.kind.files(own, part).items():
                    stem, dot, end = name.partition(".")
                    made[f"{stem}_{_file_names(config)[number]}{dot}{end}"] = content
        return made

    def page(self, config: Experiment, tables: Tables) -> Page:
        """Return the page: all combinations side by side, then each by itself, unless there are many."""
        parts = cast(SweptTables, tables).parts
        pages = {number: self.kind.page(config.each[number], part) for number, part in parts.items()}
        figures = [_score_name(option) for option in _numeric(config)]
        text = f"{len(config.each)} combinations of {', '.join(config.sweep)}."
        if len(config.each) > MAX_SHOWN:
            text += f" With more than {MAX_SHOWN}, a combination has no section of its own; the tables have all."
        sections = [Section("Sweep", text, self.headline(config, tables).table, figures)]
        for number, page in pages.items():
            if len(config.each) <= MAX_SHOWN:
                sections += [_renamed(config, number, section) for section in page.sections]
        first = next(iter(pages.values()))
        return Page(first.subject, first.introduction, sections)

    def headline(self, config: Experiment, tables: Tables) -> Headline:
        """Return what a terminal shows: the rows of all combinations, with a column for each swept option."""
        parts = cast(SweptTables, tables).parts
        own = {number: self.kind.headline(config.each[number], part) for number, part in parts.items()}
        headings = list(dict.fromkeys(heading for one in own.values() for heading in one.table.headings))
        short = _short_names(config)
        rows = []
        for number, one in own.items():
            values = [_text(value) for value in config.combinations[number][0].values()]
            for row in one.table.rows:
                cells = dict(zip(one.table.headings, row, strict=True))
                rows.append([*values, *(cells.get(heading, "–") for heading in headings)])
        return Headline(next(iter(own.values())).title, Table([*short.values(), *headings], rows), _notes(config, own))

    def figures(self, config: Experiment, tables: Tables) -> dict[str, Figure]:
        """Return the score over each numeric option, and the figures of each combination, unless there are many."""
        parts = cast(SweptTables, tables).parts
        made = self._score_figures(config, parts)
        for number, part in parts.items():
            if len(config.each) <= MAX_SHOWN:
                end = _file_names(config)[number]
                own = self.kind.figures(config.each[number], part)
                made |= {f"{name}_{end}": figure for name, figure in own.items()}
        return made

    def _parts(self, config: Experiment, results: Results) -> Iterator[tuple[int, Experiment, Results]]:
        """Yield the number of each combination, its config and its results, by the labels of the kind."""
        by_label = {
            label: list(own) for label, own in itertools.groupby(results.records, key=lambda record: record.label)
        }
        labels = _labels(config, _plans(self.kind, config))
        for number, own in enumerate(config.each):
            part = Results([])
            for plain, label in labels[number].items():
                part.records += [
                    replace(record, cell=Cell(plain, record.seed, record.cell.settings))
                    for record in by_label.get(label, [])
                ]
                if label in results.tries:
                    part.tries[plain] = [Tried(tried.choice, tried.records) for tried in results.tries[label]]
                if label in results.chosen:
                    part.chosen[plain] = results.chosen[label]
            yield number, own, part

    def _score_figures(self, config: Experiment, parts: Mapping[int, Tables]) -> dict[str, Figure]:
        found = {number: score for number, part in parts.items() if (score := self.kind.score(part)) is not None}
        if not found:
            return {}
        rows = [score.table.assign(combination=number) for number, score in found.items()]
        name = next(iter(found.values())).name
        table = pd.concat(rows, ignore_index=True)
        return {_score_name(option): _draw(config, option, table, name) for option in _numeric(config)}


def options_used(config: Experiment, kind: Kind[Any]) -> set[str]:
    """Return the swept options on which the settings of a run depend, or whether there is such a run."""
    return {option for own in _dependences(config, _plans(kind, config)).values() for option in own}


def origins(kind: Kind[Any], config: Experiment) -> dict[str, tuple[Experiment, str]]:
    """Return, by the label of each run of a sweep, the first config that has it, and its label there."""
    found: dict[str, tuple[Experiment, str]] = {}
    for own, labels in zip(config.each, _labels(config, _plans(kind, config)), strict=True):
        for plain, label in labels.items():
            found.setdefault(label, (own, plain))
    return found


Plan = dict[str, CellSettings]  # by label


def _plans(kind: Kind[Any], config: Experiment) -> list[Plan]:
    """Return the runs of each combination."""
    return [{run.label: run.settings for run in kind.plan(own)} for own in config.each]


def _labels(config: Experiment, plans: Sequence[Plan]) -> list[dict[str, str]]:
    """Return, for each combination, the label of each run with the values on which its settings depend."""
    dependences = _dependences(config, plans)
    found = []
    for texts, plan in zip(_texts(config), plans, strict=True):
        ends = {label: [texts[option] for option in dependences[label]] for label in plan}
        found.append({label: ",".join([label, *end]) for label, end in ends.items()})
    return found


def _dependences(config: Experiment, plans: Sequence[Plan]) -> dict[str, list[str]]:
    """Return, by label, the options that change its settings, or whether it is there."""
    sizes = [range(len(values)) for values in config.sweep.values()]
    number_of = {numbers: number for number, numbers in enumerate(itertools.product(*sizes))}
    found: dict[str, list[str]] = {label: [] for plan in plans for label in plan}
    for place, option in enumerate(config.sweep):
        for numbers, number in number_of.items():
            first = plans[number_of[(*numbers[:place], 0, *numbers[place + 1 :])]]
            for label, own in found.items():
                if option not in own and plans[number].get(label) != first.get(label):
                    own.append(option)
    return found


def _short_names(config: Experiment) -> dict[str, str]:
    """Return, by option, the shortest end of its path that no other option ends with."""
    return {option: _short_name(option, list(config.sweep)) for option in config.sweep}


def _short_name(option: str, options: Sequence[str]) -> str:
    parts = option.split(".")
    ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
    alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in options) == 1)
    return next(alone, option)


def _texts(config: Experiment) -> list[dict[str, str]]:
    """Return, for each combination, the text of each option, such as ``lr=0.1``."""
    short = _short_names(config)
    by_option = {}
    for option, values in config.sweep.items():
        by_option[option] = [f"{short[option]}={text}" for text in _distinct(values)]
    return [dict(zip(by_option, texts, strict=True)) for texts in itertools.product(*by_option.values())]


def _distinct(values: Sequence[Any]) -> list[str]:
    """Return values as short texts, or as JSON if two texts are the same."""
    texts = [_text(value) for value in values]
    return texts if len(set(texts)) == len(texts) else [json.dumps(value) for value in values]


def _text(value: Any) -> str:
    """Return a value in few characters that a file's name may have.

    >>> _text(0.1), _text([8, 8]), _text({"name": "cosine", "epochs": 3})
    ('0.1', '8+8', 'cosine+epochs=3')
    """
    if isinstance(value, list):
        return "+".join(_text(item) for item in value)
    if isinstance(value, dict):
        return "+".join(_text(item) if key == "name" else f"{key}={_text(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _title(config: Experiment, number: int) -> str:
    """Return the values of a combination, such as ``lr=0.1, lam=10``."""
    return ", ".join(_texts(config)[number].values())


def _file_names(config: Experiment) -> list[str]:
    return [file_name(",".join(texts.values())) for texts in _texts(config)]


def _joined(config: Experiment, parts: Mapping[int, dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Return each table of all combinations, with the swept values in its first columns."""
    taken = {column for part in parts.values() for table in part.values() for column in table.columns}
    columns = {option: f"{SWEEP}.{option}" if option in taken else option for option in config.sweep}
    found: dict[str, list[pd.DataFrame]] = {}
    for number, part in parts.items():
        values, _ = config.combinations[number]
        for name, table in part.items():
            own = table.copy()
            for place, (option, value) in enumerate(values.items()):
                cell = value if isinstance(value, int | float | str) else json.dumps(value)
                own.insert(place, columns[option], cell)
            found.setdefault(name, []).append(own)
    return {name: _stacked(own) for name, own in found.items()}


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def _renamed(config: Experiment, number: int, section: Section) -> Section:
    """Return the section of a combination: title and figures carry the values."""
    figures = [f"{name}_{_file_names(config)[number]}" for name in section.figures]
    return replace(section, title=f"{section.title}: {_title(config, number)}", figures=figures)


def _notes(config: Experiment, own: Mapping[int, Headline]) -> list[str]:
    """Return the notes of all combinations; those that not all have say whose they are."""
    every = list(dict.fromkeys(note for one in own.values() for note in one.notes))
    notes = [note for note in every if all(note in one.notes for one in own.values())]
    for number, one in own.items():
        notes += [f"{_title(config, number)}: {note}" for note in one.notes if note not in notes]
    return notes


def _numeric(config: Experiment) -> list[str]:
    """Return the options all of whose values are numbers."""
    return [option for option, values in config.sweep.items() if all(_is_number(value) for value in values)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _score_name(option: str) -> str:
    return f"score_over_{file_name(option)}"


def _draw(config: Experiment, option: str, table: pd.DataFrame, name: str) -> Figure:
    """Draw a score over a swept option: a line for each label and combination of the other options."""
    values = [values[option] for values, _ in config.combinations]
    others = [", ".join(text for name, text in texts.items() if name != option) for texts in _texts(config)]
    placed = table.assign(
        x=table["combination"].map(dict(enumerate(values))), others=table["combination"].map(dict(enumerate(others)))
    )
    figure, axes = blank(7.6, 4.0)
    lines = list(placed.groupby(["label", "others"], sort=False))
    for number, ((label, rest), line) in enumerate(lines[:MAX_SHOWN]):
        own = line.sort_values("x")
        text = ", ".join(part for part in (str(label), rest) if part)
        axes.plot(own["x"], own["mean"], marker="o", color=colour(number), label=text)
        axes.fill_between(own["x"], own["ci_low"], own["ci_high"], color=colour(number), alpha=0.15, linewidth=0)
    if min(values) > 0 and max(values) / min(values) >= _MANY_DECADES:
        axes.set_xscale("log")
    left_out = f"; {MAX_SHOWN} of {len(lines)} lines" if len(lines) > MAX_SHOWN else ""
    axes.set(xlabel=option, ylabel=name, title=f"{name.partition(',')[0]} over {option}{left_out}")
    axes.grid(alpha=0.3)
    if lines:
        legend_beside(axes)
    return figure
