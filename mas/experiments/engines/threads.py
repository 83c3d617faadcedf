"""One thread in each worker: as many workers as cores then leave no core to be fought over.

torch is told so in each cell. The libraries beneath NumPy and others read it from the environment when they are loaded.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ONE_THREAD: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",  # macOS
}
"""Environment variables of a worker."""


@contextmanager
def environment_changed(changes: Mapping[str, str]) -> Iterator[None]:
    """Change environment variables for a while; afterwards all are as they were, also those that others have set."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
