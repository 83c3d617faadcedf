"""Small records and configs for tests: real settings, made-up outcomes."""

from dataclasses import replace
from functools import cache

from mas.experiments.cell import Cell, TrainingSettings
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord, Outcome
from mas.experiments.training import Trained

TEXT = """\
experiment: forgetting
benchmark: {stream: split, dataset: digits, experiences: 2, scenario: domain, class_order: random}
model: {name: mlp, hidden: [8]}
training: {epochs: 1, batch_size: 64}
strategies:
  - {name: naive}
  - {name: joint}
  - {name: mas, lam: 1.0}
  - {name: ewc, lam: 100.0, labels: sampled, max_samples: 20}
seeds: 2
"""


def small_config(*strategies, **changes):
    """Return a typed config of forgetting; a strategy is a name or a map."""
    named = [{"name": s} if isinstance(s, str) else s for s in strategies or ("naive",)]
    data = {
        "experiment": "forgetting",
        "benchmark": {"stream": "split", "dataset": "digits", "experiences": 2, "scenario": "domain"},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"epochs": 1, "batch_size": 64},
        "strategies": named,
        "seeds": 1,
    }
    return load_config(data | changes, try_data=False)


def first_cell(*strategies, **changes):
    """Return the first cell of a small config."""
    return Plan(small_config(*strategies, **changes)).every_cell()[0]


@cache
def settings_of(strategy) -> TrainingSettings:
    """Return the settings of a cell that trains a strategy."""
    return first_cell(strategy).settings


def make_record(label="naive", seed=0, *, strategy=None, accuracy=None, **outcome):
    """Return a record of two experiences.

    Args:
        label: of the cell; without ``strategy``, its beginning is the strategy's name.
        seed: of the cell.
        strategy: its name.
        accuracy: R.
        outcome: fields of `Outcome`.
    """
    settings = settings_of(strategy or label.partition("-")[0])
    made = Outcome(**{"untrained": [0.5, 0.5], "accuracy": accuracy or [[0.5, 0.25], [0.25, 0.75]], "seconds": 1.0})
    for name, value in outcome.items():
        setattr(made, name, value)
    return CellRecord(Cell(label, seed, settings), made)


def make_records(accuracies, label="naive", *, strategy=None, diverged=()):
    """Return a record per seed; the accuracy on the first experience falls to half of what it was."""
    made = []
    for seed, accuracy in enumerate(accuracies):
        lost = {"status": "diverged", "reason": "loss is nan"} if seed in diverged else {}
        r = [[accuracy, 0.25], [accuracy / 2, 0.75]]
        made.append(make_record(label, seed, strategy=strategy, accuracy=r, **lost))
    return made


def made_up(accuracy=0.5, *, size=2, **outcome):
    """Return what a cell could have left that was not trained."""
    row = [accuracy] * size
    return Trained(Outcome(untrained=row, accuracy=[row] * size, **outcome))


def without_time(record):
    """Return a record as text, but for the seconds and what it was made with."""
    return [line for line in replace(record, provenance=None).to_json().splitlines() if '"seconds"' not in line]
