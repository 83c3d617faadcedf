"""Save a cell's training on the way, and go on from what was saved as if it had never stopped."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from itertools import islice
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from torch.utils.data import DataLoader

from mas.experiments.avalanche_types import Benchmark, Strategy
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.record import Outcome, StrengthTry, outcome_from_plain
from mas.experiments.snapshot import CannotCaptureError, capture, random_state, restore, set_random_state
from mas.experiments.stopping import StoppedError, stop_requested


class Resumable(SupervisedPlugin[Strategy]):
    """Saves a strategy and its outcome: between experiences, between epochs, and within an epoch now and then.

    To go on within an experience, the strategy begins it again from the state that it began with, and Avalanche and
    plugins do what they do then. Before the first step the saved state is put in the place of what they did, and
    the loader skips the batches that were trained. Methods with an iterator that lasts over epochs (A-GEM,
    DER++) are saved between experiences only. Where batches are mixed from several data sets, as in
    replay, the order of a data set that begins anew is drawn in the middle of an epoch; there
    nothing is saved within an epoch.

    Args:
        strategy: with all other plugins.
        benchmark: that it is trained on.
        outcome: of the cell; it is changed in place.
        checkpoints: of the cell; None saves nothing.

    Attributes:
        stage: how many experiences are done.
        tries: the strengths that were tried so far for the next one, where it is chosen continually.
    """

    is_not_state = True

    def __init__(self, strategy: Strategy, benchmark: Benchmark, outcome: Outcome, checkpoints: Checkpoints | None):
        super().__init__()
        self.strategy = strategy
        self.benchmark = benchmark
        self.outcome = outcome
        self.checkpoints = checkpoints
        self.start = time.perf_counter()
        self.begun_with: dict[str, Any] = {}
        self.stage = 0
        self.tries: list[StrengthTry] = []
        self.saved: dict[str, Any] | None = None

    @property
    def is_inside(self) -> bool:
        """Whether a saved state from the middle of an experience is still to be put in place."""
        return self.saved is not None

    def resume(self) -> None:
        """Put the newest checkpoint in place, if there is one."""
        saved = self.checkpoints.newest() if self.checkpoints else None
        if saved is None:
            return
        self.stage = saved["stage"]
        self.tries = [StrengthTry(**one) for one in saved["tries"]]
        found = outcome_from_plain(saved["outcome"])
        for own in fields(Outcome):
            setattr(self.outcome, own.name, getattr(found, own.name))
        self.begun_with = saved["begun"]
        restore(self.strategy, self.benchmark, self.begun_with)
        set_random_state(saved["random"])
        self.saved = saved if saved["inside"] else None

    def begin(self) -> None:
        """Note the state with which an experience begins, and save it."""
        if self.checkpoints is None:
            return
        try:
            self.begun_with = capture(self.strategy, self.benchmark, inside=False)
        except CannotCaptureError:
            self.checkpoints = None  # a strategy or data of the user's own: the cell begins anew if it is stopped
        self.save()

    def note_try(self, one: StrengthTry) -> None:
        """Note a strength that was tried for the experience that is about to begin, and save it."""
        self.tries.append(one)
        self.save()

    def save(self, *, inside: bool = False, iteration: int = 0) -> None:
        """Save a checkpoint, if it is due and the state can be told."""
        if self.checkpoints is None:
            return
        if not stop_requested() and not self.checkpoints.is_due(within_epoch=iteration > 0):
            return
        try:
            self.checkpoints.save(lambda: self._state(inside, iteration))
        except CannotCaptureError:
            return

    def before_training_exp(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Put a saved state in place of what the beginning of the experience has done."""
        if self.saved is None:
            return
        epochs = strategy.train_epochs
        self._put()
        strategy.train_epochs = epochs - strategy.clock.train_exp_epochs
        if not self.saved["iteration"]:
            self.saved = None

    def before_training_epoch(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Put a state from within an epoch in place, and skip the batches that were trained."""
        if self.saved is None:
            return
        drawn = random_state()  # from which the loader draws the order of the batches
        self._put()
        set_random_state(drawn)
        strategy.dataloader = _Skipping(strategy.dataloader, self.saved["iteration"], self.saved["random"])
        self.saved = None

    def after_training_iteration(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Save within an epoch."""
        if self.checkpoints is not None and _draws_only_at_the_start(strategy.dataloader):
            self.save(inside=True, iteration=strategy.clock.train_epoch_iterations)
        if stop_requested():
            raise StoppedError

    def after_training_epoch(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Save between epochs."""
        if isinstance(strategy.dataloader, _Skipping):
            strategy.dataloader = strategy.dataloader.loader
        self.save(inside=True)

    def _state(self, inside: bool, iteration: int) -> dict[str, Any]:
        seconds = self.outcome.seconds + time.perf_counter() - self.start
        return {
            "stage": self.stage,
            "inside": inside,
            "tries": [asdict(one) for one in self.tries],
            "iteration": iteration,
            "outcome": asdict(self.outcome) | {"seconds": seconds},
            "begun": self.begun_with,
            "strategy": capture(self.strategy, self.benchmark, inside=True) if inside else None,
            "random": random_state(),
        }

    def _put(self) -> None:
        if self.saved is not None:
            restore(self.strategy, self.benchmark, self.saved["strategy"])
            set_random_state(self.saved["random"])

    def __deepcopy__(self, memo: dict[int, object]) -> "Resumable":
        return self  # copies of a strategy, which try a strength, are not saved


def saved_outcome(checkpoints: Checkpoints | None) -> Outcome:
    """Return what a cell of several parts, such as embeddings, had done when it was stopped."""
    state = checkpoints.newest() if checkpoints else None
    return outcome_from_plain(state) if state else Outcome()


def save_outcome(checkpoints: Checkpoints | None, outcome: Outcome) -> None:
    """Save what a cell of several parts has done, if it is due; raise StoppedError if it is asked to stop."""
    if checkpoints and (stop_requested() or checkpoints.is_due(within_epoch=False)):
        checkpoints.save(lambda: asdict(outcome))
    if stop_requested():
        raise StoppedError


class StopsWhenAsked(SupervisedPlugin[Strategy]):
    """Ends training at the next step when the process is asked to stop, and saves nothing."""

    def after_training_iteration(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Look whether to stop."""
        if stop_requested():
            raise StoppedError


class _Skipping:
    """A loader that draws its first batches without showing them, in the first epoch after a resumption.

    Args:
        loader: of the experience.
        count: of the batches to skip.
        random: the state of the global random streams after them.
    """

    def __init__(self, loader: Iterable[Any], count: int, random: dict[str, Any]):
        self.loader = loader
        self.count = count
        self.random = random

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for _ in islice(batches, self.count):
            pass
        set_random_state(self.random)
        yield from batches

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def _draws_only_at_the_start(loader: Any) -> bool:
    """Return whether a loader draws the order of its batches before the first one: it has one data set."""
    own = loader.loader if isinstance(loader, _Skipping) else loader
    return isinstance(own, DataLoader) or len(getattr(own, "datasets", ())) == 1
