"""Whether there is a Ray to use: looked at before anything slow is imported."""

import importlib.util
import re
import socket

from mas.experiments.errors import UserError

_TIMEOUT = 3.0  # seconds for a first connection to an address
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^:/\s]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


def check_ray(address: str | None) -> None:
    """Raise UserError if Ray is not installed, an address is none, or nobody answers there."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("engine: ray is not installed; install it with: pip install 'memory-aware-synapses[ray]'")
    if address is None or address == "auto":
        return
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise UserError(f"address: found {address!r}; expected auto, IP:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), _TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise unreachable(address, error) from None


def unreachable(address: str, error: BaseException) -> UserError:
    """Return what a user is told of an address where no Ray answers."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(
        f"address: no Ray cluster answers at {address} ({reason}); start one with ray start --head, give its address "
        "and its RAY_AUTH_TOKEN, or leave --address out"
    )
