"""The engine: sums over samples of |g| or g squared, g the gradient of an objective for one sample.

How it works. While the model runs forward, a `TorchFunctionMode` sees every call of a layer
function (`F.linear`, `F.conv2d`, ...) that takes a parameter of the model. For a function with a
closed form (`mas.rules`) the parameter is replaced by a detached alias, and the input and the
place of the output in the autograd graph are written down. One backward pass, which computes no
weight gradients at all, then gives the gradient of every noted output, and the closed form turns
(input, gradient) into the moment.

A parameter that is still reachable in the graph was used in some other way as well. Such
parameters take the slow road, all of their uses together: `vmap(grad)`, or, where that cannot be,
one backward pass a sample. So a missing closed form costs time, never a wrong number.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from mas.measuring import measuring
from mas.rules import RULES, Rule, refusal

Batch = Any  # a tensor, or any nest of tuples, lists and dicts that holds tensors
Forward = Callable[[nn.Module, Batch], Any]
Objective = Callable[[Any, Batch], Tensor]
Moment = Literal["abs", "square"]

_CACHE_BYTES = 8 * 2**20  # of per-sample gradients at once in closed forms: what stays in cache is quick
_VMAP_BYTES = 64 * 2**20  # the same for vmap, whose every chunk costs a whole pass
_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": lambda gradients: gradients.abs().sum(0),
    "square": lambda gradients: gradients.square().sum(0),
}


def per_sample_moments(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    moment: Moment = "abs",
    forward: Forward | None = None,
) -> dict[str, Tensor]:
    """Sum over the samples of a batch of |g| or g squared, exact per sample.

    For sample n and parameter θ, g_n = ∂ objective_n / ∂θ. The absolute value or the square is
    taken per sample, *before* the sum; moments of a batch-mean gradient are another, smaller
    number.

    Args:
        model: any module. It is run in eval mode and left as it was found.
        batch: a tensor, or a nest of tuples, lists and dicts; the first axis of its tensors
            counts the samples.
        objective: ``objective(output, batch)`` gives one number per sample, shape (N,), or K
            numbers per sample, shape (N, K), whose moments are summed.
        moment: "abs" for Σ_n |g_n| (MAS), "square" for Σ_n g_n² (Fisher information).
        forward: ``forward(model, batch)`` gives the output; by default ``model(batch)``, or
            ``model(batch[0])`` for a tuple or list.

    Returns:
        For every parameter that requires a gradient: its name and a tensor of its shape, in its
        dtype (float32 for half precision). A *sum* over samples: divide by N for a mean. Zeros
        for a parameter that the objective does not depend on.

    Raises:
        ValueError: no parameter requires a gradient; the objective has the wrong shape or does
            not depend on the parameters; samples of the batch influence each other.
        FloatingPointError: the objective is not finite.
        RuntimeError: a parameter has no exact per-sample gradient by any road.

    For a linear model y = w x and the objective y, the gradient for sample n is x_n:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> batch = torch.tensor([[1.0], [-2.0], [4.0]])
    >>> per_sample_moments(model, batch, lambda output, batch: output[:, 0], "abs")
    {'weight': tensor([[7.]])}
    >>> per_sample_moments(model, batch, lambda output, batch: output[:, 0], "square")
    {'weight': tensor([[21.]])}
    """
    with measuring(model):
        engine = _Pass(model, objective, moment, forward)
        engine.add(batch)
        return engine.total


def mean_moments(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    moment: Moment = "abs",
    forward: Forward | None = None,
    max_samples: int | None = None,
) -> dict[str, Tensor]:
    """Mean over the samples of many batches of |g| or g squared: `per_sample_moments`, averaged.

    Args:
        model, objective, moment, forward: as for `per_sample_moments`.
        batches: any iterable of batches, such as a data loader; sizes may differ.
        max_samples: stop after this many samples, the first ones that ``batches`` gives.

    Raises:
        ValueError: ``batches`` gives no sample, or as `per_sample_moments`.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}; give a number of at least 1, or None for all")
    with measuring(model):
        engine = _Pass(model, objective, moment, forward)
        for batch in _first_samples(batches, max_samples):
            engine.add(batch)
    if engine.count == 0:
        raise ValueError(
            "batches gave no sample; give a data loader or a list of batches (an iterator can be used only once)"
        )
    torch._foreach_div_(list(engine.total.values()), float(engine.count))
    return engine.total


def batch_size(batch: Batch) -> int:
    """Count the samples of a batch: the length of its first tensor's first axis.

    >>> batch_size((torch.zeros(5, 2), torch.zeros(5)))
    5
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    raise ValueError(f"a batch holds no tensor with a sample axis: {type(batch).__name__}")


def run_forward(model: nn.Module, batch: Batch) -> Any:
    """Give ``model(batch)``, or ``model(batch[0])`` for a tuple or list such as ``(x, y)``."""
    if isinstance(batch, tuple | list):
        return model(batch[0])
    if isinstance(batch, Tensor):
        return model(batch)
    raise ValueError(
        f"cannot tell the input in a batch of type {type(batch).__name__}; give forward=lambda model, batch: ..."
    )


@dataclass
class _Use:
    """One call of a layer function with parameters of the model."""

    rule: Rule
    names: dict[str, str]  # argument ("weight", "bias") -> name of the parameter
    arguments: dict[str, Any]
    edge: GradientEdge
    version: int  # of the input: tells whether it was overwritten since
    axis: int | None = None  # of the input, along which the samples lie

    @property
    def signature(self) -> tuple[Any, ...]:
        return id(self.rule), tuple(self.names.items()), tuple(self.arguments["input"].shape)

    def rows(self, gradient: Tensor, rows: slice) -> tuple[Tensor, dict[str, Any]]:
        """Give the output gradient and the arguments for some samples, samples first."""
        x = self.arguments["input"].detach().movedim(self.axis or 0, 0)[rows]
        return gradient.movedim(self.axis or 0, 0)[rows], self.arguments | {"input": x}


class _Recorder(TorchFunctionMode):
    """Note every call of a function that has a rule with parameters of the model."""

    def __init__(self, params: dict[str, nn.Parameter], model: nn.Module):
        super().__init__()
        self.names = {id(p): name for name, p in params.items()}
        self.model = model
        self.uses: list[_Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = RULES.get(func)
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        arguments = rule.bind(args, kwargs or {})
        if reason := refusal(func, arguments):
            raise ValueError(f"{self._owner(arguments)}: {reason}")
        names = {
            role: self.names[id(arguments.get(role))]
            for role in ("weight", "bias")
            if id(arguments.get(role)) in self.names
        }
        if not names or not rule.applies(arguments) or _transformed(arguments["input"]):
            return func(*args, **(kwargs or {}))
        for role in names:  # an alias: the graph no longer leads to the parameter itself
            arguments[role] = arguments[role].detach().requires_grad_()
        output = func(**arguments)
        x = arguments["input"]
        self.uses.append(_Use(rule, names, arguments, get_gradient_edge(output), x._version))
        return output

    def _owner(self, arguments: dict[str, Any]) -> str:
        """Name the module that the call belongs to, by its tensors."""
        own = {id(value) for value in arguments.values() if isinstance(value, Tensor)}
        for name, module in self.model.named_modules():
            if own & {id(t) for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))}:
                return f"module '{name}' ({type(module).__name__})"
        kinds = {
            type(m).__name__: n
            for n, m in self.model.named_modules()
            if getattr(m, "track_running_stats", None) is False
        }
        return "module " + ", ".join(f"'{name}' ({kind})" for kind, name in kinds.items()) if kinds else "the model"


class _Pass:
    """One importance pass over one model: ``total`` is the sum of moments over ``count`` samples."""

    def __init__(self, model: nn.Module, objective: Objective, moment: Moment, forward: Forward | None):
        if moment not in _REDUCE:
            raise ValueError(f"moment is {moment!r}; known are 'abs' and 'square'")
        self.model, self.objective, self.moment = model, objective, moment
        self.forward = forward or run_forward
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.known_axes: dict[tuple[Any, ...], list[int | None]] = {}  # where samples lie in each layer's input
        if not self.params:
            raise ValueError(
                "no parameter of the model requires a gradient; call requires_grad_(True) on those to measure"
            )
        self.total, self.count = {name: _zeros(p) for name, p in self.params.items()}, 0

    def add(self, batch: Batch) -> None:
        """Add the moments of a batch."""
        with torch.enable_grad():
            recorder = _Recorder(self.params, self.model)
            with recorder:
                output = self.forward(self.model, batch)
            values = self._values(output, batch)
            self._locate_samples(recorder.uses, batch, output, len(values))
            slow = self._slow_params(recorder.uses, values)
            for k in range(values.shape[1]):
                last = k == values.shape[1] - 1
                self._add_closed_forms(recorder.uses, slow, values[:, k].sum(), keep=not last)
            del recorder, output
            if slow:
                self._add_slow(slow, batch, values.shape)
        self.count += len(values)

    def _values(self, output: Any, batch: Batch) -> Tensor:
        """Give the objective, shape (N, K), or raise."""
        values = self.objective(output, batch)
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        size = batch_size(batch)
        if not isinstance(values, Tensor) or values.ndim not in (1, 2) or len(values) != size:
            raise ValueError(
                f"objective gave {got} for a batch of {size}; "
                f"give one number per sample, shape ({size},): do not average over the batch"
            )
        if not values.requires_grad:
            raise ValueError(
                "objective does not depend on any parameter that requires a gradient; "
                "is it detached, or run under no_grad?"
            )
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).nonzero()[0, 0])
            raise FloatingPointError(
                f"objective is {values[bad].tolist()} for sample {bad} of the batch; "
                "importance of a network that diverged has no meaning"
            )
        return values.reshape(size, -1)

    def _locate_samples(self, uses: list[_Use], batch: Batch, output: Any, size: int) -> None:
        """Find the sample axis of every noted input: the one that changes with the batch size.

        Shapes alone cannot tell (a sequence-first input may be as long as the batch is large), so
        the forward pass is run once more on a batch of another size. The same run shows whether
        the samples of a batch influence each other, in which case no per-sample gradient exists.
        """
        key = (size, *(use.signature for use in uses))
        if key not in self.known_axes:
            index = [0] if size > 1 else [0, 0]
            recorder = _Recorder(self.params, self.model)
            with recorder:
                probed = self.forward(self.model, _samples(batch, index, size))
            _check_independent(output, probed, size)
            self.known_axes[key] = _match_axes(uses, recorder.uses, size, len(index))
        for use, axis in zip(uses, self.known_axes[key], strict=True):
            use.axis = axis

    def _slow_params(self, uses: list[_Use], values: Tensor) -> set[str]:
        """Name the parameters with a use that no closed form covers."""
        slow = _reachable(values, {id(p): name for name, p in self.params.items()})
        for use in uses:
            if use.axis is None:
                slow.update(use.names.values())
        return slow

    def _add_closed_forms(self, uses: list[_Use], slow: set[str], objective: Tensor, keep: bool) -> None:
        noted = [use for use in uses if not slow.issuperset(use.names.values())]
        if not noted:
            return
        edges = [use.edge for use in noted]
        gradients = torch.autograd.grad(objective, edges, retain_graph=keep, allow_unused=True)
        shares: dict[str, list[tuple[_Use, str, Tensor]]] = defaultdict(list)
        for use, gradient in zip(noted, gradients, strict=True):
            if gradient is None:  # the objective does not depend on this call
                continue
            if use.arguments["input"]._version != use.version:
                raise RuntimeError(
                    f"the input of the layer with {', '.join(use.names.values())} was overwritten in place "
                    "after its use; make that operation out of place"
                )
            for role, name in use.names.items():
                shares[name].append((use, role, gradient))
        for name in shares.keys() - slow:
            self._add_parameter(self.total[name], shares[name])

    def _add_parameter(self, total: Tensor, shares: list[tuple[_Use, str, Tensor]]) -> None:
        """Add the moment of one parameter; the gradients of all its uses are summed first."""
        (use, role, gradient), size = shares[0], shares[0][2].shape[shares[0][0].axis or 0]
        if len(shares) == 1:
            short = use.rule.short_form(role, *use.rows(gradient, slice(None)), self.moment)
            if short is not None:
                total += short
                return
        for rows in _chunks(size, _CACHE_BYTES, total):
            per_sample = sum(use.rule.per_sample(role, *use.rows(g, rows)) for use, role, g in shares)
            total += _REDUCE[self.moment](per_sample.to(total.dtype))  # type: ignore[union-attr]

    def _add_slow(self, slow: set[str], batch: Batch, shape: torch.Size) -> None:
        """Add the moments of parameters without a closed form: vmap(grad), else sample by sample."""
        names = [name for name in self.params if name in slow]
        try:
            added = {name: torch.zeros_like(self.total[name]) for name in names}
            for per_sample in self._by_vmap(names, batch, shape):
                for name in names:
                    added[name] += _REDUCE[self.moment](per_sample[name].to(added[name].dtype))
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # vmap cannot see through this model
            added = self._by_loop(names, batch, shape)
        for name in names:
            self.total[name] += added[name]

    def _by_vmap(self, names: list[str], batch: Batch, shape: torch.Size) -> Iterator[dict[str, Tensor]]:
        size, columns = shape
        leaves, spec = tree_flatten(batch)
        counted = [_has_samples(leaf, size) for leaf in leaves]
        wrapped = _Forward(self.model, self.forward)

        def value(params: dict[str, Tensor], sample: list[Tensor], k: int) -> Tensor:
            given = iter(sample)
            one = tree_unflatten(
                [next(given)[None] if c else leaf for c, leaf in zip(counted, leaves, strict=True)], spec
            )
            output = functional_call(wrapped, {f"model.{name}": p for name, p in params.items()}, (one,))
            return self.objective(output, one).reshape(-1)[k]

        params = {name: self.params[name].detach() for name in names}
        for rows in _chunks(size, _VMAP_BYTES, *params.values()):
            sample = [leaf[rows] for leaf, c in zip(leaves, counted, strict=True) if c]
            for k in range(columns):
                yield vmap(grad(value), in_dims=(None, 0, None))(params, sample, k)

    def _by_loop(self, names: list[str], batch: Batch, shape: torch.Size) -> dict[str, Tensor]:
        params = [self.params[name] for name in names]
        total = [_zeros(p) for p in params]
        size, columns = shape
        try:
            for n in range(size):
                one = _samples(batch, [n], size)
                values = self.objective(self.forward(self.model, one), one).reshape(-1)
                for k in range(columns):
                    found = torch.autograd.grad(values[k], params, retain_graph=k < columns - 1, allow_unused=True)
                    for sum_, g in zip(total, found, strict=True):
                        if g is not None:
                            sum_.add_(_REDUCE[self.moment](g[None].to(sum_.dtype)))
        except RuntimeError as error:
            owners = sorted({name.rpartition(".")[0] or "the model" for name in names})
            raise RuntimeError(
                f"no exact per-sample gradient for module {', '.join(owners)}: {error}; "
                "freeze its parameters or make it run on a batch of one"
            ) from error
        return dict(zip(names, total, strict=True))


class _Forward(nn.Module):
    """The user's forward as a module, so that `functional_call` can swap the model's parameters."""

    def __init__(self, model: nn.Module, run: Forward):
        super().__init__()
        self.training = model.training
        self.model, self.run = model, run

    def forward(self, batch: Batch) -> Any:
        return self.run(self.model, batch)


def _transformed(tensor: Tensor) -> bool:
    """Tell whether a tensor lives inside a transform of the model's own, such as vmap: no place for aliases."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _zeros(parameter: Tensor) -> Tensor:
    """Give zeros to accumulate in: at least float32."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False).detach()


def _chunks(size: int, limit: int, *shapes: Tensor) -> Iterator[slice]:
    """Cut ``size`` samples into slices whose per-sample gradients take at most ``limit`` bytes."""
    one = sum(t.numel() * t.element_size() for t in shapes)
    step = max(1, limit // max(one, 1))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _has_samples(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def _samples(batch: Batch, index: list[int] | slice, size: int) -> Batch:
    """Select samples of a batch; whatever is not counted in samples stays as it is."""
    return tree_map(lambda leaf: leaf[index] if _has_samples(leaf, size) else leaf, batch)


def _first_samples(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    """Give batches until ``limit`` samples are reached, the last one cut to fit."""
    left = limit
    for batch in batches:
        size = batch_size(batch)
        yield batch if left is None or size <= left else _samples(batch, slice(left), size)
        if left is not None and (left := left - size) <= 0:
            return


def _check_independent(output: Any, probed: Any, size: int) -> None:
    """Raise unless the first sample's output is the same alone as within its batch."""
    for full, alone in zip(tree_leaves(output), tree_leaves(probed), strict=False):
        if not (_has_samples(full, size) and isinstance(alone, Tensor) and full.is_floating_point()):
            continue
        if full.shape[1:] == alone.shape[1:]:
            # each output unit on its own scale: masked units may hold large constants
            tolerance = 10 * torch.finfo(full.dtype).eps ** 0.5 * full.detach().abs().amax(0)
            if ((full[0] - alone[0]).detach().abs() > tolerance).any():
                raise ValueError(
                    "the output for one sample depends on the other samples of its batch, or on chance, even in "
                    "eval mode, so no per-sample gradient exists; use layers that treat samples apart "
                    "(running statistics, no sampling in eval mode)"
                )


def _match_axes(uses: list[_Use], probed: list[_Use], size: int, other: int) -> list[int | None]:
    """Give each use the axis along which its input went from ``size`` to ``other``."""
    calls: dict[tuple[str, ...], list[_Use]] = defaultdict(list)
    for use in probed:
        calls[tuple(use.names.values())].append(use)
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    axes: list[int | None] = []
    for use in uses:
        key = tuple(use.names.values())
        seen, counts[key] = counts[key], counts[key] + 1
        twin = calls[key][seen] if seen < len(calls[key]) else None
        axes.append(_axis(use, twin, size, other))
    return [
        axis if counts[tuple(u.names.values())] == len(calls[tuple(u.names.values())]) else None
        for u, axis in zip(uses, axes, strict=True)
    ]


def _axis(use: _Use, twin: _Use | None, size: int, other: int) -> int | None:
    x = use.arguments["input"].shape
    y = twin.arguments["input"].shape if twin is not None else ()
    changed = [i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b]
    if len(x) != len(y) or len(changed) != 1 or changed[0] >= use.rule.free_axes(use.arguments):
        return None
    axis = changed[0]
    return axis if (x[axis], y[axis]) == (size, other) else None


def _reachable(values: Tensor, names: dict[int, str]) -> set[str]:
    """Name the parameters that the autograd graph of ``values`` leads to."""
    found: set[str] = set()
    stack, seen = [values.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":  # its parameters are not in the graph at all
            raise ValueError(
                "a reentrant checkpoint hides its parameters from autograd; call checkpoint with use_reentrant=False"
            )
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        stack.extend(parent for parent, _ in node.next_functions)
    return found
