"""What a config of ``experiment: forgetting`` may say."""

from typing import Annotated, Literal

from pydantic import Field

from mas.experiments.config.checks import check_number_of_runs, check_titles, check_views
from mas.experiments.config.schema import AnyProbe, AnyScheduledDeficit, AnyStrategy, Selection, TrainingExperiment
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError


class Forgetting(TrainingExperiment):
    """``experiment: forgetting``: train strategies along a stream and see who forgets what."""

    experiment: Literal["forgetting"]
    strategies: Annotated[list[AnyStrategy], Field(min_length=1)]
    selection: Selection = Selection()
    deficit: AnyScheduledDeficit | None = None
    probes: list[AnyProbe] = Field(default=[])


def check(config: Forgetting, source: Source) -> None:
    """Raise UserError for what the types cannot say."""
    check_number_of_runs(("strategies",), len(config.strategies), source)
    check_titles(("strategies",), [strategy.title() for strategy in config.strategies], source)
    _check_selection(config, source)
    check_titles(("probes",), [probe.title() for probe in config.probes], source)
    check_views(("probes",), config.probes, config.deficit, source)
    _check_deficit(config, source)


def _check_selection(config: Forgetting, source: Source) -> None:
    """A strategy chooses in one way, and the data held out are those of ``selection``."""
    for number, strategy in enumerate(config.strategies):
        if strategy.continual_choice is None:
            continue
        place = ("strategies", number)
        if any(search.place[:2] == place for search in config.searches):
            found = "found both a list and continual to select from"
            raise UserError(f"{source.where(place)}: {found}; allowed: one way in a strategy")
        if config.benchmark.held_out:
            where = source.where(("benchmark", "validation"))
            raise UserError(f"{where}: {source.name(place)} holds out data by selection.validation; leave this out")


def _check_deficit(config: Forgetting, source: Source) -> None:
    """Where experiences differ in their classes, or all are trained at once, some deficits make no sense."""
    if config.deficit is None:
        return
    where, name = source.where(("deficit",)), config.deficit.name
    arguments = config.benchmark.arguments()
    classes_differ = arguments.get("scenario", "domain") != "domain" or config.benchmark.stream == "sequence"
    moves_labels = name == "label_permutation" or config.deficit.arguments().get("labels") == "drawn"
    if classes_differ and moves_labels:
        raise UserError(f"{where}: {name} moves labels between experiences; allowed: where all share their classes")
    if any(strategy.name == "joint" for strategy in config.strategies):
        raise UserError(f"{where}: joint trains all experiences at once and has no epochs of the stream; leave it out")
