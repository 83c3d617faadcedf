"""Checks that several kinds of experiment share."""

from collections.abc import Sequence

from mas.experiments.config.schema import ProbeOptions
from mas.experiments.config.yaml_source import Key, Source
from mas.experiments.errors import UserError


def check_titles(place: Key, titles: Sequence[str], source: Source) -> None:
    """Raise UserError if a title stands twice in a list of the config."""
    folded = [title.casefold() for title in titles]  # some file systems fold case
    for number, title in enumerate(titles):
        if folded.index(title.casefold()) < number:
            where = source.where((*place, number))
            raise UserError(f"{where}: found a second {title!r}; add a label of its own, such as {title}-2")


def check_run_labels(labels: Sequence[str], source: Source) -> None:
    """Raise UserError if two runs have one label: they would share files."""
    folded = [label.casefold() for label in labels]
    twice = next((label for number, label in enumerate(labels) if folded.index(label.casefold()) < number), None)
    if twice is not None:
        raise UserError(f"{source.where(())}: two runs would have the label {twice!r}; give one of them another label")


def check_views(place: Key, probes: Sequence[ProbeOptions], deficit: object, source: Source) -> None:
    """Raise UserError if a probe looks at impaired data and there is no deficit."""
    for number, probe in enumerate(probes):
        impaired = [view for view in probe.data if view.startswith("impaired")]
        if impaired and deficit is None:
            where = source.where((*place, number, "data"))
            raise UserError(f"{where}: found {impaired[0]}, and there is no deficit; add one")


def check_one_length(epochs: object, source: Source) -> None:
    """Raise UserError if ``training.epochs`` is a list."""
    if not isinstance(epochs, int):
        raise UserError(f"{source.where(('training', 'epochs'))}: found a list; allowed: a number, the clear epochs")
