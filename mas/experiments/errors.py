"""What a user can mend: shown as one line each, without a traceback."""


class UserError(Exception):
    """A mistake in what was asked for; every line says what was found and what is allowed."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


class DivergedError(Exception):
    """Training left the finite numbers; the message says where."""


class RenamedWarning(FutureWarning):
    """A config has an old spelling; it is read as the new one. The message says where and what."""


BLOW_UPS = (DivergedError, FloatingPointError)  # what ends a cell as diverged; the library raises the second
