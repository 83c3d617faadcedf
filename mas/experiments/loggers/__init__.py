"""Loggers: where the events of a run are written to, beside its results. None of them changes a result."""

from collections.abc import Callable

from mas.experiments.loggers.json_lines import JsonLines
from mas.experiments.loggers.logger import Logger
from mas.experiments.loggers.tensorboard import TensorBoard
from mas.experiments.loggers.weights_and_biases import WeightsAndBiases

LOGGERS: dict[str, Callable[..., Logger]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
"""Name in YAML -> class of (folder, options). Its docstring's first line describes it."""
