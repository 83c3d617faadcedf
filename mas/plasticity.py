"""How well a network can still learn: units that are asleep, the rank of its features, a fresh task.

Each function takes a model and batches, leaves both as they were, and gives plain numbers: a probe
for any training loop. Batches of size 0 are skipped. A network that has diverged raises
FloatingPointError: a weight, an output or what is measured is NaN or infinite.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mas.batches import Batch, Forward, batch_size, labels_of, run_forward, with_samples
from mas.finite import check_finite, check_output, check_weights
from mas.importance import last_layer
from mas.local import ACTIVATIONS
from mas.state import named_parameters, preserving_state, unwrap_model

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
        FloatingPointError: a weight, an activation or the output is not finite.
    """
    watch, seen = _Watch(), False
    check_weights(model)
    with preserving_state(model), torch.no_grad():
        for batch in with_samples(batches):
            seen = True
            with _named_calls(unwrap_model(model), watch), watch:
                output = (forward or run_forward)(unwrap_model(model), batch)
            check_output(output)
    if not seen:
        raise ValueError("batches gave no sample; give a data loader or a list of batches")
    if not watch.sums:
        raise ValueError("saw no elementwise activation function (ReLU, GELU, tanh, ...); there are no units to watch")
    for name, largest in watch.largest.items():
        check_finite(largest, f"the activation of {name!r}")
    return {name: UnitActivity(watch.sums[name] / watch.counts[name], watch.largest[name]) for name in watch.sums}


def dormant_units(
    model: nn.Module, batches: Iterable[Batch], threshold: float = 0.025, forward: Forward | None = None
) -> dict[str, float]:
    """Share of units in each layer whose mean |h| is at most ``threshold`` times the layer's mean, from 0 to 1.

    Args:
        model, batches, forward: as for `unit_activity`.
        threshold: τ, at least 0. 0 counts units that are silent on all of the data.

    Raises:
        ValueError, FloatingPointError: as `unit_activity`; ValueError also for a threshold below 0.

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
    """Share of units in each layer that give 0 for every sample, from 0 to 1.

    Args and raises: as `unit_activity`.
    """
    return {name: _share(own.largest == 0) for name, own in unit_activity(model, batches, forward).items()}


def features(model: nn.Module, batches: Sequence[Batch], forward: Forward | None = None) -> Tensor:
    """Give what the last layer is fed, for each sample: shape (N, D), positions taken for features.

    Args:
        model: whose last layer, the classifier or a head, is a module called with a tensor.
        batches, forward: as for `unit_activity`; the first is gone through twice.

    Raises:
        ValueError: no sample, or the model has no such layer.
        FloatingPointError: a weight, a feature or the output is not finite.
    """
    batches = list(with_samples(batches))
    check_weights(model)
    if not batches:
        raise ValueError("batches gave no sample; give a list of batches")
    names = last_layer(model, batches[0], forward)
    owners = {name.rpartition(".")[0] for name in names}
    if len(owners) != 1:
        raise ValueError("found no last layer with parameters of its own; the rank of its input cannot be told")
    found: list[Tensor] = []
    module = unwrap_model(model).get_submodule(owners.pop())
    hook = module.register_forward_pre_hook(lambda m, args: found.append(args[0].detach().flatten(1)))
    try:
        with preserving_state(model), torch.no_grad():
            for batch in batches:
                check_output((forward or run_forward)(unwrap_model(model), batch))
    finally:
        hook.remove()
    matrix = torch.cat(found)
    check_finite(matrix, "the feature matrix")
    return matrix


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
    """Mean of |w| over all parameters that are trained.

    Raises:
        ValueError: the model has none.
        FloatingPointError: a weight is not finite.
    """
    check_weights(model)
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
        FloatingPointError: a weight, the output, the loss or the gradient is not finite.
    """
    check_weights(model)
    params = [p for p in named_parameters(model).values() if p.requires_grad]
    total, count = [torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for p in params], 0
    with preserving_state(model), torch.enable_grad():
        for batch in with_samples(batches):
            size = batch_size(batch)
            output = (forward or run_forward)(unwrap_model(model), batch)
            check_output(output)
            value = loss(output, labels_of(batch, "the loss"))
            check_finite(value.detach(), "the loss")
            for own, gradient in zip(total, torch.autograd.grad(value, params, allow_unused=True), strict=True):
                if gradient is not None:
                    own.add_(gradient.double(), alpha=size)
            count += size
    if not count:
        raise ValueError("batches gave no sample; give a data loader or a list of batches")
    norm = sum(t.square().sum() for t in total).sqrt() / count  # type: ignore[union-attr]
    check_finite(norm, "the gradient of the loss")
    return float(norm)


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

    User hooks on modules and parameters are not copied, so they never see the copy's passes. Hooks
    of torch itself are copied, as they are part of the model: `torch.nn.utils.weight_norm`,
    `spectral_norm` and `prune` work by them. A user hook that changes what the model computes has
    no effect in the copy; write it as a module instead. Global hooks, such as those of
    `register_module_forward_hook`, are called for the copy too.

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
        FloatingPointError: a weight or the output of the model is not finite, or the copy diverged in
            its own steps: ``lr`` is too high for this network. A probe ends its cell as diverged in
            both cases, and the reason says which it was: a value that is left out would bias means
            over seeds.

    Source: Lyle et al. 2023, Understanding Plasticity in Neural Networks (labels drawn at random).
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; give a number of at least 0")
    run, batches = forward or run_forward, list(with_samples(batches))
    if not batches:
        raise ValueError("batches gave no sample; give a list of batches")
    check_weights(model)
    with preserving_state(model), torch.enable_grad():
        pupil = _copy_without_hooks(unwrap_model(model)).requires_grad_(True)
        generator = generator or torch.Generator().manual_seed(0)
        labels = _random_labels(pupil, batches, run, generator)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # the guard puts the stream back
        _train(pupil.train(), batches, labels, steps, lr, run)
        with torch.no_grad():
            pupil.eval()
            losses = [F.cross_entropy(run(pupil, b), y, reduction="sum") for b, y in zip(batches, labels, strict=True)]
    found = float(sum(losses) / sum(len(y) for y in labels))
    _check_copy(found, steps, lr)
    return found


def _random_labels(
    model: nn.Module, batches: Sequence[Batch], run: Forward, generator: torch.Generator
) -> list[Tensor]:
    with torch.no_grad():
        output = run(model.eval(), batches[0])
    check_output(output)
    sizes = [batch_size(batch) for batch in batches]
    return [torch.randint(output.shape[1], (n,), generator=generator).to(output.device) for n in sizes]


def _train(
    model: nn.Module, batches: Sequence[Batch], labels: Sequence[Tensor], steps: int, lr: float, run: Forward
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for step in range(steps):
        which = step % len(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(run(model, batches[which]), labels[which])
        _check_copy(float(loss.detach()), step, lr)
        loss.backward()
        optimizer.step()


def _check_copy(loss: float, steps: int, lr: float) -> None:
    """Raise FloatingPointError if the loss of the copy is not finite after some steps."""
    if math.isfinite(loss):
        return
    if steps:
        raise FloatingPointError(f"the copy diverged: its loss is {loss} after {steps} steps; use a lower lr than {lr}")
    raise FloatingPointError(f"the network's loss on random labels is {loss} before the first step")


def _copy_without_hooks(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model`` that keeps only the hooks of torch."""
    memo: dict[int, Any] = {}
    owned = {id(value) for module in model.modules() for value in (module, *vars(module).values())}
    for _, hook in _own_hooks(model):
        if id(hook) not in owned:
            memo[id(hook)] = hook  # not copied: it may hold what cannot be, such as a file
    for module in model.modules():
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor) and not value.is_leaf:  # torch refuses to copy it
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    for remove, _ in list(_own_hooks(copied)):
        remove()
    return copied


def _own_hooks(model: nn.Module) -> Iterator[tuple[Callable[[], Any], Any]]:
    """Yield the hooks that do not belong to torch, each after a function that removes it."""
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = getattr(module, kind)
            for number, hook in hooks.items():
                if not _belongs_to_torch(hook):
                    yield partial(hooks.pop, number), hook


def _belongs_to_torch(hook: Any) -> bool:
    """Tell whether a hook is part of the model, as those of weight norm, pruning and lazy modules are."""
    while isinstance(hook, partial):
        hook = hook.func
    module = getattr(hook, "__module__", None) or ""
    utilities = [kind.__module__ for kind in type(hook).__mro__]  # a pruning method may be the user's subclass
    return module.startswith("torch.") or any(name.startswith("torch.nn.utils.") for name in utilities)


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

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        """Note that a module begins to run: a forward pre-hook."""
        self.modules.append(name)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note that the innermost module ends: a forward hook. It returns None, as others replace the output."""
        self.modules.pop()

    def _note(self, output: Tensor) -> None:
        module = self.modules[-1] if self.modules and self.modules[-1] else "model"
        self.calls[module] = self.calls.get(module, 0) + 1
        name = module if self.calls[module] == 1 else f"{module}#{self.calls[module]}"
        if not output.numel():  # such as an expert's that no token was sent to
            return
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
        hooks.append(module.register_forward_pre_hook(partial(watch.enter, name)))
        hooks.append(module.register_forward_hook(watch.leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        watch.modules.clear()


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
