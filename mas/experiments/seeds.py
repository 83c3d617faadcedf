"""Separate random streams, each with a name, derived from a cell's seed."""

import hashlib


def stream_seed(seed: int, *name: str | int) -> int:
    """Return the seed of a named random stream, derived from a cell's seed.

    Streams with different names are independent: one more draw in one of them, such as by a strategy
    that samples, changes no other.

    >>> stream_seed(0, "initialisation") == stream_seed(0, "initialisation")
    True
    >>> stream_seed(0, "initialisation") == stream_seed(0, "shuffling")
    False
    """
    parts = [str(part) for part in (seed, *name)]
    text = "/".join(parts)
    digest = hashlib.sha256(text.encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    return number >> 1  # fits an int64
