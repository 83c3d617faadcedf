"""What is said of data that cannot be used."""

import re


class DataError(ValueError):
    """Data are missing or broken; the message says what, where it was looked for, and how to mend it."""


def reason(error: BaseException) -> str:
    """Return in one line why something failed."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r" ?<_io\.\w+ object at \w+>", "", text)  # Pillow names what it reads from
    return " ".join(text.split())[:200] or type(error).__name__
