"""What a record must hold to be believed: a file may be damaged, edited, or copied to another name."""

import math
from collections.abc import Sequence

from mas.experiments.cell import Cell, TrainingSettings
from mas.experiments.record import Accuracies, CellRecord, EmbeddingRecord, Outcome


def check_record(record: CellRecord, cell: Cell) -> None:
    """Check the content of a cell's file.

    Args:
        record: that was read.
        cell: whose file it is.

    Raises:
        ValueError: the record is of another cell, a number is out of its range, or a shape is wrong.
    """
    _check_is("label", record.label, expected=cell.label)
    _check_is("seed", record.seed, expected=cell.seed)
    outcome = record.outcome
    _check_number("seconds", outcome.seconds, least=0)
    if isinstance(record.cell.settings, TrainingSettings):
        _check_accuracies(outcome)
    _check_tries(outcome)
    _check_embeddings(outcome.embeddings)


def _check_is(name: str, found: object, *, expected: object) -> None:
    if type(found) is not type(expected) or found != expected:
        raise ValueError(f"{name}: found {found!r}; the name of the file says {expected!r}")


def _check_number(name: str, value: float, *, least: float, most: float = math.inf) -> None:
    if not (least <= value <= most and math.isfinite(value)):
        allowed = f"{least} to {most}" if math.isfinite(most) else f"at least {least}"
        raise ValueError(f"{name}: found {value}; expected {allowed}")


def _check_accuracies(outcome: Outcome) -> None:
    """Check R, shape (T, T), and the T accuracies before training."""
    size = len(outcome.accuracy)
    for t, row in enumerate(outcome.accuracy):
        _check_row(f"accuracy.{t}", row, size)
    if outcome.untrained is not None:
        _check_row("untrained", outcome.untrained, size)
    if outcome.finished and (not size or None in outcome.accuracy[-1]):
        raise ValueError("accuracy: found none at the end; a finished cell has one of each experience")


def _check_row(name: str, row: Sequence[float | None] | Accuracies, size: int) -> None:
    if len(row) != size:
        raise ValueError(f"{name}: found {len(row)} accuracies; expected {size}, one of each experience")
    for i, value in enumerate(row):
        if value is not None:
            _check_number(f"{name}.{i}", value, least=0, most=1)


def _check_tries(outcome: Outcome) -> None:
    for t, tries in enumerate(outcome.tries):
        for i, one in enumerate(tries):
            _check_number(f"tries.{t}.{i}.strength", one.strength, least=0)
            _check_number(f"tries.{t}.{i}.seconds", one.seconds, least=0)
            if not math.isnan(one.accuracy):  # it is if the try diverged
                _check_number(f"tries.{t}.{i}.accuracy", one.accuracy, least=0, most=1)


def _check_embeddings(embeddings: Sequence[EmbeddingRecord]) -> None:
    """Check that the vectors of all tasks have one length: they are compared."""
    for i, one in enumerate(embeddings):
        first = len(embeddings[0].vector)
        if not len(one.vector) == len(one.scale) == first:
            found = f"{len(one.vector)} numbers with {len(one.scale)} scales"
            raise ValueError(f"embeddings.{i}: found {found}; expected {first} of both, as in the first")
        if not all(map(math.isfinite, (*one.vector, *one.scale))):
            raise ValueError(f"embeddings.{i}: found a number that is not finite")
        _check_number(f"embeddings.{i}.head_accuracy", one.head_accuracy, least=0, most=1)
