"""A Ray of this machine, or the connection to a cluster, for as long as cells are done."""

import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mas.experiments.config.schema import Resources
from mas.experiments.engines.devices import cores
from mas.experiments.engines.engine import EngineOptions
from mas.experiments.engines.ray_address import unreachable
from mas.experiments.errors import UserError

_QUIET: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "false",
    "RAY_gcs_rpc_server_connect_timeout_s": "5",
}


@contextmanager
def connected(options: EngineOptions) -> Iterator[Any]:
    """Yield the module ``ray``, connected; afterwards everything is as before, and what was started here has ended.

    A process that has connected to Ray itself keeps its connection.

    Raises:
        UserError: there is no cluster at the address.
    """
    with _as_before(), _temporary_folder() as folder:
        os.environ.update(_QUIET)
        with _signals_kept():
            ray = _import_ray()
            is_ours = not ray.is_initialized()
            if is_ours:
                _connect(ray, options, folder)
        try:
            with _silent(ray):
                yield ray
        finally:
            if is_ours:
                with _signals_kept():
                    ray.shutdown()


def room_for(ray: Any, resources: Resources) -> int:
    """Return how many cells the nodes that are alive can do at a time."""
    return sum(_room(node["Resources"], resources) for node in ray.nodes() if node["Alive"])


def check_room(ray: Any, resources: Resources) -> None:
    """Raise UserError if no node has what one cell takes."""
    if room_for(ray, resources):
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most: Mapping[str, float] = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    there = f"{most.get('CPU', 0):g} CPUs and {most.get('GPU', 0):g} GPUs"
    wanted = f"cpus: {resources.cpus:g}, gpus: {resources.gpus:g}"
    raise UserError(f"resources: found {wanted}; the largest node has {there}; ask for less, or start a larger one")


def _room(node: Mapping[str, float], resources: Resources) -> int:
    cpus, gpus = node.get("CPU", 0.0), node.get("GPU", 0.0)
    room = math.floor(cpus / resources.cpus + 1e-9)
    if 0 < resources.gpus < 1:
        return min(room, int(gpus) * math.floor(1 / resources.gpus + 1e-9))  # a cell is on one GPU
    return min(room, math.floor(gpus / resources.gpus)) if resources.gpus else room


def _import_ray() -> Any:
    hook = sys.excepthook
    import ray

    sys.excepthook = hook
    return ray


@contextmanager
def _silent(ray: Any) -> Iterator[None]:
    """Keep Ray from printing which nodes die: the cells of these are begun again."""
    worker = ray._private.worker
    before = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _connect(ray: Any, options: EngineOptions, folder: Path) -> None:
    address = options.address or os.environ.get("RAY_ADDRESS") or None
    own: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        own |= _here(options, folder)
    elif not address.startswith("ray://"):
        own |= {"address": address}
    else:
        own = {"address": address, "log_to_driver": False}
    try:
        with warnings.catch_warnings(action="ignore"):
            ray.init(**own, ignore_reinit_error=True)
    except Exception as error:  # noqa: BLE001 - Ray's own, of many types
        ray.shutdown()
        raise unreachable(address or "of a Ray on this machine", error) from None


def _here(options: EngineOptions, folder: Path) -> dict[str, Any]:
    """Return what starts a Ray that nobody else can reach, with room for as many cells as there are workers."""
    os.environ.setdefault("RAY_AUTH_TOKEN", _token())
    workers = options.workers or max(1, math.floor(cores() / options.resources.cpus))
    return {
        "address": "local",
        "num_cpus": math.ceil(workers * options.resources.cpus),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(folder),
    }


@cache
def _token() -> str:
    """Return the token of every Ray that this process starts: Ray reads it once."""
    return secrets.token_hex(32)


@contextmanager
def _as_before() -> Iterator[None]:
    """Restore the environment variables that Ray sets, and the level of its log."""
    before = {name: value for name, value in os.environ.items() if _is_of_ray(name)}
    level = logging.getLogger("ray").level
    try:
        yield
    finally:
        for name in [name for name in os.environ if _is_of_ray(name)]:
            del os.environ[name]
        os.environ.update(before)
        logging.getLogger("ray").setLevel(level)


def _is_of_ray(name: str) -> bool:
    return name.startswith("RAY_") or name == "PYTHONBREAKPOINT"


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the handlers of signals that Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a folder for Ray's own files; deleted afterwards. Its path is short: Ray makes sockets in it."""
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="mas-ray-", dir=parent if len(parent) < 20 else "/tmp"))  # noqa: S108
    try:
        yield folder
    finally:
        with suppress(OSError):
            shutil.rmtree(folder, ignore_errors=True)
