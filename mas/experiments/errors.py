"""Mistakes of the user, shown as one line each without a traceback, and networks that diverged."""


class UserError(Exception):
    """A mistake in what was asked for; each line names what was found and what is allowed."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


class DivergedError(Exception):
    """A loss, weight or output is not finite; the message names the place."""


class LoggerWarning(UserWarning):
    """A logger failed and is left out; the run goes on without it."""


class RenamedWarning(FutureWarning):
    """A config has an old spelling; it is read as the new one. The message says where and what."""


BLOW_UPS = (DivergedError, FloatingPointError)  # these end a cell as diverged; the library raises the second
