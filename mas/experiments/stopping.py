"""Stop when asked to: by Ctrl-C, or by SIGTERM or SIGHUP, as a cluster or a closed terminal sends them.

A signal sets a flag. Training looks at the flag after each step, saves a checkpoint and raises `StoppedError`. Work
that does not look at the flag, such as an importance pass over much data, is ended by `StoppedError` in the middle
of it after `PATIENCE` seconds; what was saved before is kept.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


PATIENCE = 2.0
"""Seconds that a cell has to look at the flag before it is ended where it is."""

_AGAIN = 0.5  # seconds until the next try, as Python ignores what is raised in some places


class StoppedError(BaseException):
    """A cell was stopped on the way; what it saved is kept. No mistake, so that nothing takes it for one."""


class _Flag:
    is_set = False
    may_end = False  # inside of `ending_when_asked`


_flag = _Flag()


def request_stop() -> None:
    """Ask this process to stop what it trains."""
    _flag.is_set = True
    if _flag.may_end:
        _set_timer(PATIENCE)


def stop_requested() -> bool:
    """Return whether this process was asked to stop."""
    return _flag.is_set


@contextmanager
def ending_when_asked() -> Iterator[None]:
    """Raise `StoppedError` inside, wherever that is, `PATIENCE` seconds after this process is asked to stop.

    This needs a main thread and a timer of the system, as on Linux and macOS; elsewhere nothing is raised.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _end)
    _flag.may_end = True
    if stop_requested():
        _set_timer(PATIENCE)
    try:
        yield
    finally:
        _flag.may_end = False
        _set_timer(0)
        signal.signal(signal.SIGALRM, before)


def _end(number: int, frame: FrameType | None) -> None:
    if _flag.may_end and stop_requested():
        raise StoppedError


def _set_timer(seconds: float) -> None:
    """Send this process SIGALRM after so many seconds, and then again and again; 0 ends that."""
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)


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
