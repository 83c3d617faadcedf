"""Stop when asked to: by Ctrl-C, or by SIGTERM or SIGHUP, as a cluster or a closed terminal sends them.

A signal only sets a flag. Training looks at the flag after each step, saves a checkpoint and raises `StoppedError`.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StoppedError(BaseException):
    """A cell was stopped on the way; what it saved is kept. No mistake, so that nothing takes it for one."""


class _Flag:
    is_set = False


_flag = _Flag()


def request_stop() -> None:
    """Ask this process to stop what it trains."""
    _flag.is_set = True


def stop_requested() -> bool:
    """Return whether this process was asked to stop."""
    return _flag.is_set


@contextmanager
def stopping_on_signals(at_once: Callable[[], None]) -> Iterator[None]:
    """Set the flag at the first signal; end the process at the second one.

    Signals that are ignored, as Ctrl-C is in a background job, stay so. Outside the main thread, where Python takes no
    handlers, nothing is changed.

    Args:
        at_once: called before the process ends at the second signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop_requested():
            at_once()
            os._exit(128 + number)
        request_stop()

    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    _flag.is_set = False
    try:
        yield
    finally:
        _flag.is_set = False
        for number, handler in before.items():
            signal.signal(number, handler)
