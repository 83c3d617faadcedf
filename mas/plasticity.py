"""How well a network can still learn: units that are asleep, the rank of its features, a fresh task.

Each function takes a model and batches, leaves both as they were, and gives plain numbers: a probe
for any training loop.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mas.batches import Batch, Forward, batch_size, run_forward
from mas.importance import last_layer
from mas.local import ACTIVATIONS
from mas.measuring import bare, measuring, named_parameters

Loss = Callable[[Any, Tensor], Tensor]


class UnitActivity(NamedTuple):
    """What the units of one activation function did over a data set, each tensor of shape (units,)."""

    mean: Tensor  # mean over samples and positions of |h|
    largest: Tensor  # greatest |h|


def unit_activity(
    model: nn.Module, batches: Iterable[Batch], forward: Forward | None = None
) -> dict[str, UnitActivity]:
    """Watch what every elementwise activation function (ReLU, GELU, tanh, ...) gives.

    Args:
        model: any; activations may be modules or function calls.
        batches: as for `mas.mas_importance`; gone through once.
        forward: ``forward(model, batch)`` runs it where ``model(x)`` would not.

    Returns:
        By the name of the module that calls the function, in the order of the calls (``#2`` for the
        second call of one module). A unit is a channel: axis 1 of what a convolution's activation
        gives, the last axis otherwise.

    Raises:
        ValueError: no sample, or the model calls no such function.
    """
    watch = _Watch()
    with measuring(model), torch.no_grad():
        for batch in batches:
            with _named_calls(bare(model), watch), watch:
                (forward or run_forward)(bare(model), batch)
    if not watch.sums:
        raise ValueError("saw no elementwise activation function (ReLU, GELU, tanh, ...); there are no units to watch")
    return {name: UnitActivity(watch.sums[name] / watch.counts[name], watch.largest[name]) for name in watch.sums}


def dormant_units(
    model: nn.Module, batches: Iterable[Batch], threshold: float = 0.025, forward: Forward | None = None
) -> dict[str, float]:
    """Share of units in each layer whose mean |h| is at most ``threshold`` times the layer's mean, from 0 to 1.

    Args:
        model, batches, forward: as for `unit_activity`.
        threshold: τ, at least 0. 0 counts units that are silent on all of the data.

    Source: Sokar et al. 2023, The Dormant Neuron Phenomenon, def. 3.1.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> dormant_units(model, [torch.ones(3, 1)])
    {'1': 0.5}
    """
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; give a number of at least 0")
    activity = unit_activity(model, batches, forward)
    return {name: _share(own.mean <= threshold * own.mean.mean()) for name, own in activity.items()}


def dead_units(model: nn.Module, batches: Iterable[Batch], forward: Forward | None = None) -> dict[str, float]:
    """Share of units in each layer that give 0 for every sample, from 0 to 1; args as for `unit_activity`."""
    return {name: _share(own.largest == 0) for name, own in unit_activity(model, batches, forward).items()}


def features(model: nn.Module, batches: Sequence[Batch], forward: Forward | None = None) -> Tensor:
    """Give what the last layer is fed, for each sample: shape (N, D), positions taken for features.

    Args:
        model: whose last layer, the classifier or a head, is a module called with a tensor.
        batches, forward: as for `unit_activity`; the first is gone through twice.

    Raises:
        ValueError: no sample, or the model has no such layer.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("batches gave no sample; give a list of batches")
    names = last_layer(model, batches[0], forward)
    owners = {name.rpartition(".")[0] for name in names}
    if len(owners) != 1:
        raise ValueError("found no last layer with parameters of its own; the rank of its input cannot be told")
    found: list[Tensor] = []
    module = bare(model).get_submodule(owners.pop())
    hook = module.register_forward_pre_hook(lambda m, args: found.append(args[0].detach().flatten(1)))
    try:
        with measuring(model), torch.no_grad():
            for batch in batches:
                (forward or run_forward)(bare(model), batch)
    finally:
        hook.remove()
    return torch.cat(found)


def effective_rank(matrix: Tensor) -> float:
    """Effective rank of a matrix, exp(−Σ p_i log p_i), p the singular values' shares: from 1 to the rank; 0 of zeros.

    Raises:
        ValueError: no matrix.
        FloatingPointError: a value is not finite.

    Source: Roy and Vetterli 2007.

    >>> round(effective_rank(torch.eye(3)), 6)
    3.0
    """
    singular = _singular(matrix)
    if not singular.sum() > 0:
        return 0.0
    shares = singular / singular.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def stable_rank(matrix: Tensor) -> float:
    """Stable rank of a matrix, ‖A‖²_F / ‖A‖²₂: from 1 to the rank; 0 of zeros; raises as `effective_rank`.

    Source: Rudelson and Vershynin 2007.

    >>> round(stable_rank(torch.diag(torch.tensor([2.0, 1.0]))), 6)
    1.25
    """
    squares = _singular(matrix).square()
    return float(squares.sum() / squares.max()) if squares.sum() > 0 else 0.0


def mean_weight(model: nn.Module) -> float:
    """Mean of |w| over all parameters that are trained."""
    weights = [p.detach().double() for p in named_parameters(model).values() if p.requires_grad]
    if not weights:
        raise ValueError("the model has no parameter that requires a gradient")
    return float(sum(w.abs().sum() for w in weights) / sum(w.numel() for w in weights))


def gradient_norm(
    model: nn.Module, batches: Iterable[Batch], loss: Loss = F.cross_entropy, forward: Forward | None = None
) -> float:
    """Norm of the gradient of the mean loss over all samples, in eval mode, over all trained parameters.

    Args:
        model, forward: as for `unit_activity`.
        batches: of ``(x, y, ...)``.
        loss: ``loss(output, y)`` gives the mean over a batch.

    Raises:
        ValueError: no sample, or batches without labels.
    """
    params = [p for p in named_parameters(model).values() if p.requires_grad]
    total, count = [torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for p in params], 0
    with measuring(model), torch.enable_grad():
        for batch in batches:
            size = batch_size(batch)
            value = loss((forward or run_forward)(bare(model), batch), _labels(batch))
            for own, gradient in zip(total, torch.autograd.grad(value, params, allow_unused=True), strict=True):
                if gradient is not None:
                    own.add_(gradient.double(), alpha=size)
            count += size
    if not count:
        raise ValueError("batches gave no sample; give a data loader or a list of batches")
    return float(sum(t.square().sum() for t in total).sqrt() / count)  # type: ignore[union-attr]


def trainability(
    model: nn.Module,
    batches: Sequence[Batch],
    steps: int = 100,
    lr: float = 0.01,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Mean loss on a fresh task after ``steps`` steps of a copy: the inputs as given, the labels drawn at random.

    A network that has lost its plasticity is slow to fit even these. Each step is one of SGD with
    momentum 0.9 on the next of the batches, over and over.

    Args:
        model: a classifier, of which a copy is trained, in train mode.
        batches: inputs, or tuples or lists that start with them.
        steps: of the copy.
        lr: its learning rate.
        forward: as for `unit_activity`.
        generator: draws the labels, uniformly over the outputs, and what dropout and its like draw; by
            default a fresh one, seeded 0.

    Returns:
        The cross-entropy over all batches after the last step, in eval mode, in nats.

    Raises:
        ValueError: no sample, or a number of steps below 0.

    Source: Lyle et al. 2023, Understanding Plasticity in Neural Networks (labels drawn at random).
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; give a number of at least 0")
    run, batches = forward or run_forward, list(batches)
    if not batches:
        raise ValueError("batches gave no sample; give a list of batches")
    with measuring(model), torch.enable_grad():
        pupil = copy.deepcopy(bare(model)).requires_grad_(True)
        generator = generator or torch.Generator().manual_seed(0)
        labels = _random_labels(pupil, batches, run, generator)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # the guard puts the stream back
        _train(pupil.train(), batches, labels, steps, lr, run)
        with torch.no_grad():
            pupil.eval()
            losses = [F.cross_entropy(run(pupil, b), y, reduction="sum") for b, y in zip(batches, labels, strict=True)]
    return float(sum(losses) / sum(len(y) for y in labels))


def _random_labels(
    model: nn.Module, batches: Sequence[Batch], run: Forward, generator: torch.Generator
) -> list[Tensor]:
    with torch.no_grad():
        output = run(model.eval(), batches[0])
    sizes = [batch_size(batch) for batch in batches]
    return [torch.randint(output.shape[1], (n,), generator=generator).to(output.device) for n in sizes]


def _train(
    model: nn.Module, batches: Sequence[Batch], labels: Sequence[Tensor], steps: int, lr: float, run: Forward
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for step in range(steps):
        which = step % len(batches)
        optimizer.zero_grad()
        F.cross_entropy(run(model, batches[which]), labels[which]).backward()
        optimizer.step()


class _Watch(TorchFunctionMode):
    """Note what activation functions give, by the module that calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[str] = []  # that are running, the innermost last
        self.calls: dict[str, int] = {}  # in this forward pass
        self.channels = -1  # the axis of units: that of the last layer's output
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.largest: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _AXES:
            self.channels = _AXES[func]
        if func in ACTIVATIONS and isinstance(output, Tensor):
            self._note(output)
        return output

    def _note(self, output: Tensor) -> None:
        module = self.modules[-1] if self.modules and self.modules[-1] else "model"
        self.calls[module] = self.calls.get(module, 0) + 1
        name = module if self.calls[module] == 1 else f"{module}#{self.calls[module]}"
        with torch._C.DisableTorchFunction():
            size = output.detach().double().abs()
            units = size.movedim(1 if self.channels == 1 and size.ndim > 2 else -1, 0).flatten(1)
            zero = torch.zeros(len(units), dtype=units.dtype, device=units.device)
            self.sums[name] = self.sums.get(name, zero) + units.sum(1)
            self.counts[name] = self.counts.get(name, 0) + units.shape[1]
            self.largest[name] = torch.maximum(self.largest.get(name, zero), units.amax(1))


@contextmanager
def _named_calls(model: nn.Module, watch: _Watch) -> Any:
    """Tell ``watch`` which module is running."""
    watch.calls = {}
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: watch.modules.append(name)))
        hooks.append(module.register_forward_hook(lambda m, args, out: watch.modules.pop() and None, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        watch.modules.clear()


def _labels(batch: Batch) -> Tensor:
    if isinstance(batch, Tensor) or len(batch) < 2:
        raise ValueError("the loss needs batches of (x, y); got unlabelled ones")
    return batch[1]


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _singular(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2:
        raise ValueError(f"the rank is that of a matrix; got shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise FloatingPointError("the features are not finite; they have no rank")
    return torch.linalg.svdvals(matrix.detach().double())


_AXES: dict[Any, int] = {
    **dict.fromkeys((F.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__), -1),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), 1),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1),
}
