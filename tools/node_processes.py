"""A Ray cluster of node processes on this machine, of which single ones can be killed."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_START = 60.0  # seconds


@dataclass
class NodeProcesses:
    """Node processes, each started by ``ray start``.

    Attributes:
        address: of the cluster.
        environment: that a driver needs to be let in.
        nodes: the processes; the first is the head.
    """

    address: str
    environment: Mapping[str, str]
    folder: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_node(self, cpus: int = 1) -> None:
        """Start a node, the first one as the head, and wait until it has joined."""
        host, _, port = self.address.partition(":")
        of_head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        which = of_head if not self.nodes else [f"--address={self.address}"]
        command = [*_RAY, "start", *which, f"--node-ip-address={host}", f"--num-cpus={cpus}", "--block"]
        log = self.folder / f"node{len(self.nodes)}.log"
        with log.open("wb") as output:
            environment = os.environ | dict(self.environment)
            node = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        self.nodes.append(node)
        _wait_for(log, node)

    def kill_node(self, number: int) -> None:
        """Kill a node and all that it has started, without warning."""
        _kill_tree(self.nodes[number])

    def end(self) -> None:
        """Kill every node."""
        for node in reversed(self.nodes):
            _kill_tree(node)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def node_processes(count: int = 2) -> Iterator[NodeProcesses]:
    """Yield a cluster of ``count`` nodes with one CPU each; afterwards none of its processes is left."""
    secret = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)  # a process reads it once, for every Ray
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret, "RAY_USAGE_STATS_ENABLED": "0"}
    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # Ray's sockets need a short path
    cluster = NodeProcesses(f"{_own_ip()}:{_free_port()}", token, folder)
    try:
        for _ in range(count):
            cluster.start_node()
        yield cluster
    finally:
        cluster.end()


def ray_processes() -> set[int]:
    """Return the process ids of Ray's on this machine."""
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        is_ray = words.startswith("ray::") or "/raylet " in words or "gcs_server " in words
        if is_ray and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


def _wait_for(log: Path, node: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START
    while b"Ray runtime started" not in log.read_bytes():
        if node.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"a node did not start: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.1)


def _kill_tree(node: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(node.pid)
        for process in [*own.children(recursive=True), own]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait()


def _own_ip() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: only the way there is looked up
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])
