"""Measures of plasticity: dormant units, the rank of the features, the loss on a new task.

Each function takes a model and batches, changes neither, and returns plain numbers, so that it can
be used in any training loop. Batches of size 0 are skipped. All functions raise FloatingPointError
for a network that has diverged: a weight, an output or the result is NaN or infinite.
"""

import copy
import math
from collections import Counter
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
from mas.recording import Function
from mas.state import named_parameters, preserving_state, unwrap_model

Loss = Callable[[Any, Tensor], Tensor]


class UnitActivity(NamedTuple):
    """Activity |h| of the units of one activation function over a data set; each tensor has shape (units,)."""

    mean: Tensor  # over samples and positions
    largest: Tensor


def unit_activity(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward | None = None,
) -> dict[str, UnitActivity]:
    """Return the activity of the units of every elementwise activation function (ReLU, GELU, tanh, ...).

    Args:
        model: any module; activations may be modules or function calls.
        batches: as for `mas.mas_importance`; iterated over once.
        forward: ``forward(model, batch)`` returns the output; by default ``model(x)``.

    Returns:
        Activity by the name of the module that calls the function, in the order of the calls
        (``#2`` for the second call of one module). A unit is a channel: axis 1 of a convolution's
        activation, the last axis otherwise.

    Raises:
        ValueError: no sample, or the model calls no such function.
        FloatingPointError: a weight, an activation or the output is not finite.
    """
    run = forward or run_forward
    recorder = _ActivityRecorder()
    has_samples = False
    check_weights(model)
    with preserving_state(model), torch.no_grad():
        inner = unwrap_model(model)
        for batch in with_samples(batches):
            has_samples = True
            with _named_calls(inner, recorder), recorder:
                output = run(inner, batch)
            check_output(output)
    if not has_samples:
        raise ValueError("batches gave no sample; give a data loader or a list of batches")
    if not recorder.sums:
        raise ValueError("saw no elementwise activation function (ReLU, GELU, tanh, ...); there are no units to watch")
    activity = {}
    for name, largest in recorder.largest.items():
        check_finite(largest, f"the activation of {name!r}")
        activity[name] = UnitActivity(mean=recorder.sums[name] / recorder.counts[name], largest=largest)
    return activity


def dormant_units(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    threshold: float = 0.025,
    forward: Forward | None = None,
) -> dict[str, float]:
    """Return each layer's fraction of units whose mean |h| is at most ``threshold`` times the layer's mean.

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
    activity = unit_activity(model, batches, forward=forward)
    fractions = {}
    for name, units in activity.items():
        is_dormant = units.mean <= threshold * units.mean.mean()
        fractions[name] = _fraction(is_dormant)
    return fractions


def dead_units(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward | None = None,
) -> dict[str, float]:
    """Return each layer's fraction of units that are 0 for every sample.

    Args and raises: as `unit_activity`.
    """
    activity = unit_activity(model, batches, forward=forward)
    return {name: _fraction(units.largest == 0) for name, units in activity.items()}


def features(model: nn.Module, batches: Sequence[Batch], *, forward: Forward | None = None) -> Tensor:
    """Return the input of the last layer for each sample, shape (N, D); axes after the first are flattened.

    Args:
        model: its last layer, the classifier or a head, must be a module called with a tensor.
        batches, forward: as for `unit_activity`; the model is run twice on the first batch.

    Raises:
        ValueError: no sample, or the model has no such layer.
        FloatingPointError: a weight, a feature or the output is not finite.
    """
    run = forward or run_forward
    batches = list(with_samples(batches))
    check_weights(model)
    if not batches:
        raise ValueError("batches gave no sample; give a list of batches")
    inputs: list[Tensor] = []

    def record_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0].detach().flatten(1))

    hook = _last_module(model, batches[0], run).register_forward_pre_hook(record_input)
    try:
        with preserving_state(model), torch.no_grad():
            for batch in batches:
                output = run(unwrap_model(model), batch)
                check_output(output)
    finally:
        hook.remove()
    matrix = torch.cat(inputs)
    check_finite(matrix, "the feature matrix")
    return matrix


def _last_module(model: nn.Module, batch: Batch, run: Forward) -> nn.Module:
    """Return the module with parameters that is called last."""
    names = last_layer(model, batch, forward=run)
    owners = {name.rpartition(".")[0] for name in names}
    if len(owners) != 1:
        raise ValueError("found no last layer with parameters of its own; the rank of its input cannot be told")
    return unwrap_model(model).get_submodule(owners.pop())


def effective_rank(matrix: Tensor) -> float:
    """Return the effective rank of a matrix, exp(−Σ p_i log p_i) with p_i = σ_i / Σ σ, σ the singular values.

    It lies between 1 and the rank; 0 for a matrix of zeros.

    Raises:
        ValueError: ``matrix`` does not have two axes.
        FloatingPointError: a value is not finite.

    Source: Roy and Vetterli 2007.

    >>> round(effective_rank(torch.eye(3)), 6)
    3.0
    """
    values = _singular_values(matrix)
    if not values.sum() > 0:
        return 0.0
    p = values / values.sum()
    entropy = -torch.special.xlogy(p, p).sum()
    return float(torch.exp(entropy))


def stable_rank(matrix: Tensor) -> float:
    """Return the stable rank of a matrix, ‖A‖²_F / ‖A‖²₂.

    It lies between 1 and the rank; 0 for a matrix of zeros.

    Raises:
        ValueError, FloatingPointError: as `effective_rank`.

    Source: Rudelson and Vershynin 2007.

    >>> round(stable_rank(torch.diag(torch.tensor([2.0, 1.0]))), 6)
    1.25
    """
    squares = _singular_values(matrix).square()
    if not squares.sum() > 0:
        return 0.0
    return float(squares.sum() / squares.max())


def mean_weight(model: nn.Module) -> float:
    """Return the mean of |w| over all parameters that require a gradient.

    Raises:
        ValueError: the model has none.
        FloatingPointError: a weight is not finite.
    """
    check_weights(model)
    weights = [p.detach().double() for p in named_parameters(model).values() if p.requires_grad]
    if not weights:
        raise ValueError("the model has no parameter that requires a gradient")
    total = sum(weight.abs().sum() for weight in weights)
    count = sum(weight.numel() for weight in weights)
    return float(total / count)


def gradient_norm(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss: Loss = F.cross_entropy,
    forward: Forward | None = None,
) -> float:
    """Return the norm of the gradient of the mean loss over all samples, in eval mode.

    The gradient is that of all parameters that require one.

    Args:
        model, forward: as for `unit_activity`.
        batches: of ``(x, y, ...)``.
        loss: ``loss(output, y)`` returns the mean over a batch.

    Raises:
        ValueError: no sample, or batches without labels.
        FloatingPointError: a weight, the output, the loss or the gradient is not finite.
    """
    run = forward or run_forward
    check_weights(model)
    params = [p for p in named_parameters(model).values() if p.requires_grad]
    totals = [torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for p in params]
    count = 0
    with preserving_state(model), torch.enable_grad():
        for batch in with_samples(batches):
            size = batch_size(batch)
            output = run(unwrap_model(model), batch)
            check_output(output)
            value = loss(output, labels_of(batch, "the loss"))
            check_finite(value.detach(), "the loss")
            gradients = torch.autograd.grad(value, params, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient.double(), alpha=size)
            count += size
    if not count:
        raise ValueError("batches gave no sample; give a data loader or a list of batches")
    squares = sum(total.square().sum() for total in totals)
    norm = squares.sqrt() / count  # type: ignore[union-attr]
    check_finite(norm, "the gradient of the loss")
    return float(norm)


def trainability(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    steps: int = 100,
    lr: float = 0.01,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Return the mean loss of a copy of the model after ``steps`` steps on the inputs with random labels.

    A network that has lost its plasticity fits such labels slowly. Each step is a step of SGD with
    momentum 0.9 on one batch; the batches are used in turn.

    The user's hooks on modules and parameters are not copied, so they are not called for the copy.
    Hooks of torch itself are copied, as they are part of the model: `torch.nn.utils.weight_norm`,
    `spectral_norm` and `prune` use them. A user hook that changes the model's output has no effect
    in the copy; write it as a module instead. Global hooks, such as those of
    `register_module_forward_hook`, are called for the copy too.

    Args:
        model: a classifier; the copy is trained in train mode.
        batches: inputs, or tuples or lists that start with them.
        steps: number of training steps, at least 0.
        lr: learning rate.
        forward: as for `unit_activity`.
        generator: draws the labels, uniformly over the outputs, and seeds dropout and the like; by
            default a new one, seeded 0.

    Returns:
        The cross-entropy over all batches after the last step, in eval mode, in nats.

    Raises:
        ValueError: no sample, or a number of steps below 0.
        FloatingPointError: a weight or the output of the model is not finite, or the copy diverged
            during its steps, as ``lr`` is too high for this network; the message says which. A probe
            ends its cell as diverged in both cases: omitting the value would bias means over seeds.

    Source: Lyle et al. 2023, Understanding Plasticity in Neural Networks (labels drawn at random).
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; give a number of at least 0")
    run = forward or run_forward
    batches = list(with_samples(batches))
    if not batches:
        raise ValueError("batches gave no sample; give a list of batches")
    check_weights(model)
    with preserving_state(model), torch.enable_grad():
        trained = _copy_without_hooks(unwrap_model(model)).requires_grad_(True)
        generator = generator or torch.Generator().manual_seed(0)
        labels = _random_labels(trained, batches, run, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        torch.manual_seed(seed)  # `preserving_state` restores the global stream
        _train(trained.train(), batches, labels, steps=steps, lr=lr, run=run)
        loss = _mean_loss(trained.eval(), batches, labels, run)
    _check_copy(loss, steps, lr)
    return loss


def _random_labels(
    model: nn.Module,
    batches: Sequence[Batch],
    run: Forward,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return labels for each batch, drawn uniformly over the model's outputs."""
    with torch.no_grad():
        output = run(model.eval(), batches[0])
    check_output(output)
    classes = output.shape[1]
    labels = []
    for batch in batches:
        drawn = torch.randint(classes, (batch_size(batch),), generator=generator)
        labels.append(drawn.to(output.device))
    return labels


def _train(
    model: nn.Module,
    batches: Sequence[Batch],
    labels: Sequence[Tensor],
    *,
    steps: int,
    lr: float,
    run: Forward,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for step in range(steps):
        i = step % len(batches)
        optimizer.zero_grad()
        output = run(model, batches[i])
        loss = F.cross_entropy(output, labels[i])
        _check_copy(float(loss.detach()), step, lr)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _mean_loss(model: nn.Module, batches: Sequence[Batch], labels: Sequence[Tensor], run: Forward) -> float:
    losses = []
    for batch, y in zip(batches, labels, strict=True):
        losses.append(F.cross_entropy(run(model, batch), y, reduction="sum"))
    count = sum(len(y) for y in labels)
    return float(sum(losses) / count)


def _check_copy(loss: float, steps: int, lr: float) -> None:
    """Raise FloatingPointError if the copy's loss after some steps is not finite."""
    if math.isfinite(loss):
        return
    if steps:
        raise FloatingPointError(f"the copy diverged: its loss is {loss} after {steps} steps; use a lower lr than {lr}")
    raise FloatingPointError(f"the network's loss on random labels is {loss} before the first step")


def _copy_without_hooks(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model`` that keeps only the hooks of torch."""
    memo: dict[int, object] = {}
    owned = {id(value) for module in model.modules() for value in (module, *vars(module).values())}
    for user_hook in _user_hooks(model):
        if id(user_hook.hook) not in owned:
            memo[id(user_hook.hook)] = user_hook.hook  # not copied: it may refer to a file or the like
    for module in model.modules():
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor) and not value.is_leaf:  # `deepcopy` refuses it
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    for user_hook in list(_user_hooks(copied)):
        del user_hook.registry[user_hook.key]
    return copied


class _UserHook(NamedTuple):
    """A hook on a module that does not belong to torch."""

    registry: dict[int, object]  # the module's hooks of one kind
    key: int
    hook: object


def _user_hooks(model: nn.Module) -> Iterator[_UserHook]:
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            registry = getattr(module, kind)
            for key, hook in registry.items():
                if not _belongs_to_torch(hook):
                    yield _UserHook(registry, key, hook)


def _belongs_to_torch(hook: object) -> bool:
    """Return whether a hook is part of the model, such as those of weight norm, pruning and lazy modules."""
    while isinstance(hook, partial):
        hook = hook.func
    module = getattr(hook, "__module__", None) or ""
    if module.startswith("torch."):
        return True
    bases = type(hook).__mro__  # a pruning method may be the user's subclass
    return any(base.__module__.startswith("torch.nn.utils.") for base in bases)


class _ActivityRecorder(TorchFunctionMode):
    """Record the outputs of activation functions, by the module that calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[str] = []  # those running now, the innermost last
        self.calls: Counter[str] = Counter()  # of activation functions by each module, in this forward pass
        self.channels = -1  # the axis of the units in the last layer's output
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.largest: dict[str, Tensor] = {}

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _CHANNEL_AXES:
            self.channels = _CHANNEL_AXES[func]
        if func in ACTIVATIONS and isinstance(output, Tensor):
            self._record(output)
        return output

    def enter(self, name: str, module: nn.Module, args: object) -> None:
        """Record that a module begins to run: a forward pre-hook."""
        self.modules.append(name)

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        """Record that the innermost module ends: a forward hook; returning None keeps the output."""
        self.modules.pop()

    def _record(self, output: Tensor) -> None:
        name = self._call_name()
        if not output.numel():  # such as that of an expert that gets no token
            return
        with torch._C.DisableTorchFunction():
            activity = output.detach().double().abs()
            axis = 1 if self.channels == 1 and activity.ndim > 2 else -1
            units = activity.movedim(axis, 0).flatten(1)  # (units, samples and positions)
            zero = torch.zeros(len(units), dtype=units.dtype, device=units.device)
            self.sums[name] = self.sums.get(name, zero) + units.sum(1)
            self.counts[name] += units.shape[1]
            self.largest[name] = torch.maximum(self.largest.get(name, zero), units.amax(1))

    def _call_name(self) -> str:
        """Count a call of an activation function and return its name."""
        module = self.modules[-1] if self.modules else ""
        module = module or "model"
        self.calls[module] += 1
        count = self.calls[module]
        return module if count == 1 else f"{module}#{count}"


@contextmanager
def _named_calls(model: nn.Module, recorder: _ActivityRecorder) -> Iterator[None]:
    """Keep ``recorder.modules`` up to date during one forward pass."""
    recorder.calls.clear()
    hooks = []
    for name, module in model.named_modules():
        enter = partial(recorder.enter, name)
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(recorder.leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        recorder.modules.clear()


def _fraction(condition: Tensor) -> float:
    """Return the fraction of elements that are True."""
    return float(condition.double().mean())


def _singular_values(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2:
        raise ValueError(f"the rank is that of a matrix; got shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise FloatingPointError("the features are not finite; they have no rank")
    return torch.linalg.svdvals(matrix.detach().double())


# functions of layers -> the axis of the channels in their output
_CHANNEL_AXES: dict[Function, int] = {
    **dict.fromkeys((F.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__), -1),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), 1),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1),
}
