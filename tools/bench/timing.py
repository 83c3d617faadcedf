"""Time several ways to do one thing against the plainest of them, in turns, so that a slow moment hits all."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def ratios(ways: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """Time each way `repeats` times, in turns; the first is what the others are divided by.

    Each should have been called once before: a first call allocates, compiles, and plans.

    Returns:
        By name: "ms", the median time; "ratio", "low" and "high", the median, least and greatest
        of time ÷ the first way's time in the same turn.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(_CLOCKS[device](way))
    (plain, *_) = times.values()
    return {name: _summary(own, plain) for name, own in times.items()}


def _summary(own: list[float], plain: list[float]) -> dict[str, float]:
    parts = [a / b for a, b in zip(own, plain, strict=True)]
    return {"ms": statistics.median(own), "ratio": statistics.median(parts), "low": min(parts), "high": max(parts)}


def _on_cpu(way: Callable[[], Any]) -> float:
    start = time.perf_counter()
    way()
    return (time.perf_counter() - start) * 1e3


def _on_cuda(way: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    way()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


_CLOCKS = {"cpu": _on_cpu, "cuda": _on_cuda}
