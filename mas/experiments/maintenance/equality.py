"""Whether two results of one cell are the same to the bit."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mas.experiments.provenance import Environment
from mas.experiments.record import CellRecord, Outcome
from mas.experiments.store import first_difference


@dataclass(frozen=True)
class Difference:
    """The first number in which two results differ."""

    place: str
    there: Any
    here: Any

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.place} is {self.there} there and {self.here} here"


def difference_of_records(there: CellRecord, here: CellRecord) -> Difference | None:
    """Return the first difference of two records of a cell, in settings or results; times do not count."""
    old, new = there.cell.settings.plain(), here.cell.settings.plain()
    if old != new:
        return Difference(*first_difference(old, new, "settings"))
    return difference_of_outcomes(there.outcome, here.outcome)


def difference_of_outcomes(there: Outcome, here: Outcome) -> Difference | None:
    """Return the first difference of two outcomes; times do not count."""
    old, new = _without_times(there), _without_times(here)
    return None if old == new else Difference(*first_difference(old, new))


def difference_of_weights(there: dict[str, Tensor], here: dict[str, Tensor]) -> Difference | None:
    """Return the first tensor that differs in any bit."""
    for name in {**there, **here}:
        if name not in there or name not in here or not torch.equal(there[name], here[name]):
            return Difference(f"weights.{name}", "one", "another")
    return None


def differences_of_environments(there: Environment, here: Environment) -> list[str]:
    """Return a line for each difference on which the last bits of a result may depend."""
    lines = []
    if there.cpu_capability != here.cpu_capability:
        lines.append(f"instruction set: {there.cpu_capability} there and {here.cpu_capability} here")
    if there.threads != here.threads:
        lines.append(f"threads: {there.threads} there and {here.threads} here")
    if there.processor != here.processor:
        lines.append(f"processor: {there.processor} there and {here.processor} here")
    if there.python != here.python:
        lines.append(f"python: {there.python} there and {here.python} here")
    for name in sorted({**there.packages, **here.packages}):
        old, new = there.packages.get(name), here.packages.get(name)
        if old != new:
            lines.append(f"{name}: {old} there and {new} here")
    if there.git_commit != here.git_commit:
        lines.append(f"code: {_short(there.git_commit)} there and {_short(here.git_commit)} here")
    return lines


def _short(commit: str | None) -> str | None:
    return commit and commit[:12]


def _without_times(outcome: Outcome) -> Any:
    """Return an outcome as plain data in which NaN is equal to NaN."""
    plain = asdict(outcome)
    del plain["seconds"]
    for tries in plain["tries"]:
        for one in tries:
            del one["seconds"]
    return json.loads(json.dumps(plain), parse_constant=str)
