"""Tell several loggers of each event, whatever becomes of them."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from mas.experiments.errors import LoggerWarning
from mas.experiments.events import Event, Progress
from mas.experiments.loggers.logger import Logger
from mas.experiments.snapshot import random_state, set_random_state


@contextmanager
def telling(loggers: Mapping[str, Callable[[], Logger]], progress: Progress) -> Iterator[Progress]:
    """Yield a function that passes each event on to all loggers, then to ``progress``.

    A logger that fails is told no more, with one warning; the run goes on. What loggers draw of random streams is
    put back.

    Args:
        loggers: by name, functions that make them.
        progress: called with each event.

    Raises:
        UserError: a logger needs a package that is not installed.
    """
    told = [_Told(name, make()) for name, make in loggers.items()]
    if not told:
        yield progress
        return

    def tell(event: Event) -> None:
        with _same_random_state():
            _tell_all(told, lambda logger: logger.note(event))
        progress(event)

    try:
        yield tell
    finally:
        _tell_all(told, lambda logger: logger.close())


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Keep the global random streams as they are: with one worker, a cell is trained in this process."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


class _Told:
    """A logger that is told of events until it fails."""

    def __init__(self, name: str, logger: Logger):
        self.name = name
        self.logger: Logger | None = logger


def _tell_all(told: Sequence[_Told], tell: Callable[[Logger], None]) -> None:
    for one in told:
        if one.logger is None:
            continue
        try:
            tell(one.logger)
        except Exception as error:  # noqa: BLE001 - of another package, or the disk
            one.logger = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            message = f"logging: {one.name} failed and is left out from now on ({reason}); the run goes on"
            warnings.warn(message, LoggerWarning, stacklevel=2)
