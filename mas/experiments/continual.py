"""``lam: {select: continual}``: choose the strength anew for each experience, seeing that experience alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

from mas.experiments.avalanche_types import Strategy
from mas.experiments.config.schema import ContinualChoice
from mas.experiments.record import StrengthTry
from mas.penalty import QuadraticPenalty
from mas.strategies import ImportancePlugin


def penalty_of(strategy: Strategy) -> QuadraticPenalty:
    """Return the penalty of a strategy that has one."""
    (plugin,) = (p for p in strategy.plugins if isinstance(p, ImportancePlugin))
    return plugin.penalty


def tune(
    strategy: Strategy,
    how: ContinualChoice,
    unit: float,
    accuracy_of: Callable[[Strategy], float],
    *,
    made: Sequence[StrengthTry] = (),
    note: Callable[[StrengthTry], None] = lambda one: None,
) -> list[StrengthTry]:
    """Set the strength for the next experience, as `ContinualChoice` says.

    Args:
        strategy: with an `ImportancePlugin`; only its penalty's strength changes.
        how: where to begin, how to go on and when to stop.
        unit: the penalty's strength for λ = 1 (EWC's is ½).
        accuracy_of: trains a strategy (a copy) on the next experience, but for what is held
            out, and returns the accuracy on that; NaN if it diverged.
        made: the first tries, where they were made before; they are not made again.
        note: called with each try that is made now.

    Returns:
        Every try; the last was taken.
    """
    penalty = penalty_of(strategy)
    if not penalty.importance:  # nothing to protect yet
        return []
    tries: list[StrengthTry] = []
    for number, lam in enumerate(_falling_strengths(how)):
        penalty.strength = unit * lam
        if number < len(made):
            tries.append(made[number])
        else:
            tries.append(_try(strategy, lam, accuracy_of))
            note(tries[-1])
        if number and tries[-1].accuracy >= (1 - how.drop) * tries[0].accuracy:
            break
    return tries


def _try(strategy: Strategy, lam: float, accuracy_of: Callable[[Strategy], float]) -> StrengthTry:
    begun = time.perf_counter()
    accuracy = accuracy_of(deepcopy(strategy))
    return StrengthTry(lam, accuracy, round(time.perf_counter() - begun, 3))


def _falling_strengths(how: ContinualChoice) -> Iterator[float]:
    """Yield 0, for the greatest plasticity, then smaller and smaller strengths, and 0 again below a trillionth."""
    yield 0.0
    lam = how.start
    while lam > 1e-12 * how.start:
        yield lam
        lam *= how.decay
    yield 0.0
