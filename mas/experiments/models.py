"""Networks by name, with heads as the scenario asks: one shared, or one per task."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

Activation = Literal["relu", "tanh", "gelu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class MultiHead(MultiTaskModule):
    """A body and one linear head per task, all there from the start.

    Avalanche's own multi-head classifier makes a head when a task first appears, from the global
    random stream: then initial weights depend on what was drawn before.
    """

    def __init__(self, body: nn.Module, features: int, classes: int, heads: int):
        super().__init__()
        self.body = body
        self.heads = nn.ModuleList(nn.Linear(features, classes) for _ in range(heads))
        self.max_class_label = classes

    def forward(self, x: Tensor, task_labels: Any) -> Tensor:
        """Give logits of shape (N, classes), each sample's by its task's head."""
        features = self.body(x)
        tasks = [task_labels] if isinstance(task_labels, int) else task_labels.unique().tolist()
        if len(tasks) == 1:
            return self.heads[tasks[0]](features)
        output = features.new_zeros(len(x), self.max_class_label)
        for task in tasks:
            output[task_labels == task] = self.heads[task](features[task_labels == task])
        return output


def mlp(
    shape: Sequence[int],
    hidden: list[Annotated[int, Gt(0)]] = [256, 256],  # noqa: B006 - never changed
    activation: Activation = "relu",
) -> tuple[nn.Module, int]:
    """Fully connected network on the flattened input; ``hidden`` gives the units of each layer.

    Returns:
        The body and the number of features that it gives; a head goes on top.
    """
    sizes = [prod(shape), *hidden]
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), _ACTIVATIONS[activation]())]
    return nn.Sequential(nn.Flatten(), *layers), sizes[-1]


MODELS = {
    "mlp": mlp,
}
"""Name in YAML -> function of (input shape, options) that gives (body, number of features)."""


def build_model(
    name: str, options: dict[str, Any], shape: Sequence[int], classes: int, heads: int, seed: int
) -> nn.Module:
    """Build a network whose initial weights depend on ``seed`` alone.

    Args:
        name: a name in `MODELS`.
        options: that function's other arguments.
        shape: of one input, without the sample axis.
        classes: outputs of each head.
        heads: 1 for a shared head; more give a `MultiHead` that takes task labels.
        seed: of the initial weights; the global random stream is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, features = MODELS[name](shape, **options)
        if heads > 1:
            return MultiHead(body, features, classes, heads)
        return nn.Sequential(body, nn.Linear(features, classes))
