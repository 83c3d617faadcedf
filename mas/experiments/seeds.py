"""Separate random streams, each with a name, derived from a cell's seed."""

import hashlib


def stream_seed(seed: int, *name: str | int) -> int:
    """Derive the seed of a named random stream from a cell's seed.

    Streams with different names are independent, so that one more draw in one of them (a strategy
    that samples, say) shifts no other.

    >>> stream_seed(0, "initialisation") == stream_seed(0, "initialisation")
    True
    >>> stream_seed(0, "initialisation") == stream_seed(0, "shuffling")
    False
    """
    text = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # fits an int64
