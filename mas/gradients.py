"""The engine: sums over samples of |g| or g squared, g the gradient of an objective for one sample.

How it works. The forward pass is recorded (`mas.recording`): every call of a layer function with
parameters, its input, and the place of its output in the autograd graph. One backward pass, which
computes no weight gradients at all, then gives the gradient of every noted output, and the
function's closed form (`mas.rules`) turns (input, gradient) into the moment.

A parameter that is still reachable in the graph was used in some other way as well. Such
parameters take the slow road, all of their uses together: `vmap(grad)`, or, where that cannot be,
one backward pass a sample. So a missing closed form costs time, never a wrong number.
"""

import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from mas.measuring import bare, measuring, named_parameters
from mas.recording import Key, Layout, Recorder, Use, close, leaves, locate

Batch = Any  # a tensor, or any nest of tuples, lists and dicts that holds tensors
Forward = Callable[[nn.Module, Batch], Any]
Objective = Callable[[Any, Batch], Tensor]
Moment = Literal["abs", "square"]
Reduction = Literal["sample", "batch"]
Share = tuple[Use, str, Tensor]  # a use, "weight" or "bias", the gradient of its output

_CACHE_BYTES = 2**20  # of per-sample gradients at once on a CPU: what stays in its cache is quick
_DEVICE_BYTES = 256 * 2**20  # the same on an accelerator, where a few large operations are quick
_VMAP_BYTES = 64 * 2**20  # at least this for vmap, whose every chunk costs a whole pass


def per_sample_moments(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    moment: Moment = "abs",
    forward: Forward | None = None,
    max_bytes: int | None = None,
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
        max_bytes: the most that per-sample gradients may take at a time, in bytes; a single
            sample's are always made. By default 1 MiB on a CPU (what stays in its cache is
            quick), 256 MiB on an accelerator, and 64 MiB where `vmap` is needed.

    Returns:
        For every parameter that requires a gradient: its name and a tensor of its shape, in its
        dtype (float32 for half precision). A *sum* over samples: divide by N for a mean. Zeros
        for a parameter that the objective does not depend on.

    Raises:
        ValueError: no parameter requires a gradient; the objective has the wrong shape or does
            not depend on the parameters; samples of the batch influence each other; model and
            batch are on different devices.
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
        engine = Pass(model, objective, moment, forward, max_bytes)
        engine.add(batch)
        return engine.total


def mean_moments(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    moment: Moment = "abs",
    forward: Forward | None = None,
    max_samples: int | None = None,
    max_bytes: int | None = None,
    reduction: Reduction = "sample",
) -> dict[str, Tensor]:
    """Mean over the samples of many batches of |g| or g squared: `per_sample_moments`, averaged.

    Args:
        model, objective, moment, forward, max_bytes: as for `per_sample_moments`.
        batches: any iterable of batches, such as a data loader; sizes may differ.
        max_samples: stop after this many samples, the first ones that ``batches`` gives.
        reduction: "sample" is the mean over samples of moments per sample. "batch" is the mean
            over batches of the moment of the batch-mean gradient: it depends on the batch size
            and exists only to reproduce the numbers of other libraries.

    Raises:
        ValueError: ``batches`` gives no sample, or as `per_sample_moments`.
    """
    if reduction not in _PASSES:
        raise ValueError(f"reduction is {reduction!r}; known are {', '.join(map(repr, _PASSES))}")
    with measuring(model):
        return _PASSES[reduction](model, objective, moment, forward, max_bytes).over(batches, max_samples)


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


class Pass:
    """One importance pass over one model: ``total`` is the sum of moments over ``count`` samples."""

    recorder: type[Recorder] = Recorder

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        moment: Moment,
        forward: Forward | None = None,
        max_bytes: int | None = None,
    ):
        if moment not in ("abs", "square"):
            raise ValueError(f"moment is {moment!r}; known are 'abs' and 'square'")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; give a number of at least 1, or None for the default")
        self.model, self.objective, self.moment = bare(model), objective, moment
        self.forward, self.max_bytes = forward or run_forward, max_bytes
        self.params = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
        if not self.params:
            raise ValueError(
                "no parameter of the model requires a gradient; call requires_grad_(True) on those to measure"
            )
        self.skip: set[Key] = set()  # calls without a sample axis: nothing per sample to note
        self.layouts: dict[Key, list[Layout | None]] = {}  # where samples lie in each layer's input
        self.total, self.count = {name: _zeros(p) for name, p in self.params.items()}, 0

    def add(self, batch: Batch) -> None:
        """Add the moments of a batch."""
        with torch.enable_grad():
            output, recorder = self._record(batch)
            uses = recorder.uses
            values = self._values(output, batch)
            slow = self._slow_params(uses, values)
            for k in range(values.shape[1]):
                last = k == values.shape[1] - 1
                self._add_closed_forms(uses, slow, values[:, k].sum(), keep=not last)
            del uses, recorder, output
            if slow:
                self._add_slow(slow, batch, values.shape)
        self.count += len(values)

    def over(self, batches: Iterable[Batch], max_samples: int | None = None) -> dict[str, Tensor]:
        """Give the mean over many batches, or over the first samples of them."""
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; give a number of at least 1, or None for all")
        for batch in _first_samples(batches, max_samples):
            self.add(batch)
        if self.count == 0:
            raise ValueError(
                "batches gave no sample; give a data loader or a list of batches (an iterator can be used only once)"
            )
        torch._foreach_div_(list(self.total.values()), float(self.count))
        return self.total

    def _record(self, batch: Batch) -> tuple[Any, Recorder]:
        """Run forward until every noted call has its samples along a known axis."""
        size = batch_size(batch)
        while True:
            recorder = self.recorder(self.params, self.model, self.skip)
            with recorder:
                output = self._run(batch)
            self._locate_samples(recorder.uses, batch, output, size)
            lost = {use.key for use in recorder.uses if use.layout is None}
            if not lost:
                return output, recorder
            self.skip |= lost  # the parameters stay in the graph, where others may take over

    def _run(self, batch: Batch) -> Any:
        used = {p.device for p in self.params.values()}
        given = {leaf.device for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}
        if self.forward is run_forward and given and used.isdisjoint(given):
            raise ValueError(
                f"the model is on {used.pop()} and the batch on {given.pop()}; "
                "move the batches, or give forward=lambda model, batch: ..."
            )
        return self.forward(self.model, batch)

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
        check_finite(values)
        return values.reshape(size, -1)

    def _locate_samples(self, uses: list[Use], batch: Batch, output: Any, size: int) -> None:
        """Find the sample axis of every noted input: the one that changes with the batch size.

        Shapes alone cannot tell (a sequence-first input may be as long as the batch is large), so
        the forward pass is run once more on a batch of another size. The same run shows whether
        the samples of a batch influence each other, in which case no per-sample gradient exists.
        """
        key = (size, *((use.key, use.shape) for use in uses))
        if key not in self.layouts:
            index = [size - 1, 0] if size != 2 else [1, 0, 1]  # another order, too
            recorder = self.recorder(self.params, self.model, self.skip)
            with recorder:
                probed = self._run(_samples(batch, index, size))
            _check_independent(output, probed, size, index)
            self.layouts[key] = locate(uses, recorder.uses, size, index)
        for use, layout in zip(uses, self.layouts[key], strict=True):
            use.layout = layout

    def _slow_params(self, uses: list[Use], values: Tensor) -> set[str]:
        """Name the parameters with a use that no closed form covers."""
        own = {id(p): name for name, p in self.params.items()}
        return {own[id(leaf)] for leaf in leaves(values.grad_fn) if id(leaf) in own}

    def _add_closed_forms(self, uses: list[Use], slow: set[str], objective: Tensor, keep: bool) -> None:
        noted = [use for use in uses if not slow.issuperset(use.parameters)]
        if not noted:
            return
        edges = [use.edge for use in noted if use.edge is not None]
        gradients = torch.autograd.grad(objective, edges, retain_graph=keep, allow_unused=True)
        self._add_uses(noted, gradients, slow)

    def _add_uses(self, uses: Sequence[Use], gradients: Sequence[Tensor | None], slow: Set[str] = frozenset()) -> None:
        """Add the moments of all parameters but ``slow``, given the gradient at each use's output."""
        shares: dict[str, list[Share]] = defaultdict(list)
        for use, gradient in zip(uses, gradients, strict=True):
            if gradient is None:  # the objective does not depend on this call
                continue
            if use.overwritten:
                raise RuntimeError(
                    f"the input of the layer with {', '.join(sorted(use.parameters))} was overwritten in place "
                    "after its use; make that operation out of place"
                )
            for role, names in use.names.items():
                for name in names:
                    shares[name].append((use, role, gradient))
        for name in shares.keys() - slow:
            self._add_parameter(name, shares[name])

    def _add_parameter(self, name: str, shares: list[Share]) -> None:
        """Add the moment of one parameter; the gradients of all its uses are summed first."""
        total, (use, role, gradient) = self.total[name], shares[0]
        size = use.layout.samples if use.layout else 0
        if len(shares) == 1 and self._is_parameter(name, shares[0]):
            short = use.rule.short_form(role, *use.part(gradient, slice(None), total.dtype), self.moment)
            if short is not None:
                total += short
                return
        one = total.numel() + sum(g.numel() for _, _, g in shares) // size
        for rows in _chunks(size, self._limit(total), one * total.element_size()):
            _accumulate(total, self._per_sample(name, shares, rows), self.moment)

    def _limit(self, total: Tensor) -> int:
        return self.max_bytes or (_CACHE_BYTES if total.device.type == "cpu" else _DEVICE_BYTES)

    def _is_parameter(self, name: str, share: Share) -> bool:
        """Tell whether the parameter itself was used, not something derived from it."""
        use, role, _ = share
        return use.sources[role] is self.params[name]

    def _per_sample(self, name: str, shares: list[Share], rows: slice) -> Tensor:
        dtype, rules = self.total[name].dtype, {use.rule for use, _, _ in shares}
        join = next(iter(rules)).join if len(rules) == 1 and len(shares) > 1 else None
        if join and all(role == "weight" and self._is_parameter(name, (use, role, g)) for use, role, g in shares):
            return rules.pop().weight(*join([use.part(g, rows, dtype) for use, _, g in shares]))
        return reduce(operator.iadd, (self._share(name, share, rows) for share in shares))

    def _share(self, name: str, share: Share, rows: slice) -> Tensor:
        """Give the per-sample gradient that one use contributes."""
        use, role, gradient = share
        found = use.per_sample(role, gradient, rows, self.total[name].dtype)
        if self._is_parameter(name, share):
            return found
        return _pulled_back(use.sources[role], self.params[name], found).to(found.dtype)

    def _add_slow(self, slow: set[str], batch: Batch, shape: torch.Size) -> None:
        """Add the moments of parameters without a closed form: vmap(grad), else sample by sample."""
        names = [name for name in self.params if name in slow]
        try:
            added = {name: torch.zeros_like(self.total[name]) for name in names}
            for per_sample in self._by_vmap(names, batch, shape):
                for name in names:
                    _accumulate(added[name], per_sample[name].to(added[name].dtype), self.moment)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # vmap cannot see through this model
            added = self._by_loop(names, batch, shape)
        for name in names:
            self.total[name] += added[name]

    def _by_vmap(self, names: list[str], batch: Batch, shape: torch.Size) -> Iterator[dict[str, Tensor]]:
        size, columns = shape
        tensors, spec = tree_flatten(batch)
        counted = [_has_samples(leaf, size) for leaf in tensors]
        wrapped = _Forward(self.model, self.forward)

        def value(params: dict[str, Tensor], sample: list[Tensor], k: int) -> Tensor:
            given = iter(sample)
            one = tree_unflatten(
                [next(given)[None] if c else leaf for c, leaf in zip(counted, tensors, strict=True)], spec
            )
            output = functional_call(wrapped, {f"model.{real[name]}": p for name, p in params.items()}, (one,))
            return self.objective(output, one).reshape(-1)[k]

        params = {name: self.params[name].detach() for name in names}
        of = {id(p): name for name, p in self.model.named_parameters()}
        real = {name: of[id(self.params[name])] for name in names}
        one = sum(p.numel() * p.element_size() for p in params.values())
        for rows in _chunks(size, self.max_bytes or _VMAP_BYTES, one):
            sample = [leaf[rows] for leaf, c in zip(tensors, counted, strict=True) if c]
            for k in range(columns):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
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
                            _accumulate(sum_, g[None].to(sum_.dtype, copy=True), self.moment)
        except RuntimeError as error:
            owners = sorted({name.rpartition(".")[0] or "the model" for name in names})
            raise RuntimeError(
                f"no exact per-sample gradient for module {', '.join(owners)}: {error}; "
                "freeze its parameters or make it run on a batch of one"
            ) from error
        return dict(zip(names, total, strict=True))


class BatchPass(Pass):
    """Moments of batch-mean gradients, as other libraries have them: ``count`` counts batches."""

    def add(self, batch: Batch) -> None:
        """Add the moment of the batch's mean gradient."""
        with torch.enable_grad():
            values = self._values(self._run(batch), batch)
            for k in range(values.shape[1]):
                found = torch.autograd.grad(
                    values[:, k].mean(), list(self.params.values()), retain_graph=True, allow_unused=True
                )
                for total, g in zip(self.total.values(), found, strict=True):
                    if g is not None:
                        _accumulate(total, g[None].to(total.dtype, copy=True), self.moment)
        self.count += 1


_PASSES: dict[str, type[Pass]] = {"sample": Pass, "batch": BatchPass}


class _Forward(nn.Module):
    """The user's forward as a module, so that `functional_call` can swap the model's parameters."""

    def __init__(self, model: nn.Module, run: Forward):
        super().__init__()
        self.training = model.training
        self.model, self.run = model, run

    def forward(self, batch: Batch) -> Any:
        return self.run(self.model, batch)


def _accumulate(total: Tensor, per_sample: Tensor, moment: str) -> None:
    """Add the moment of per-sample gradients, overwriting them: fresh memory would cost more than the sums."""
    powers = per_sample.abs_() if moment == "abs" else per_sample.square_()
    total.add_(powers[0] if len(powers) == 1 else powers.sum(0))


def _pulled_back(source: Tensor, parameter: Tensor, gradients: Tensor) -> Tensor:
    """Give the gradients of a parameter, one per sample, from those of what is derived from it."""
    gradients = gradients.to(source.dtype)
    try:
        (found,) = torch.autograd.grad(source, [parameter], gradients, retain_graph=True, is_grads_batched=True)
    except RuntimeError:  # no batched form
        each = [torch.autograd.grad(source, [parameter], g, retain_graph=True)[0] for g in gradients]
        found = torch.stack(each)
    return found.contiguous()


def check_finite(values: Tensor) -> None:
    """Raise FloatingPointError for the first sample with a value that is not finite."""
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).nonzero()[0, 0])
        raise FloatingPointError(
            f"objective is {values[bad].tolist()} for sample {bad} of the batch; "
            "importance of a network that diverged has no meaning"
        )


def _zeros(parameter: Tensor) -> Tensor:
    """Give zeros to accumulate in: at least float32."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False).detach()


def _chunks(size: int, limit: int, one: int) -> Iterator[slice]:
    """Cut ``size`` samples of ``one`` byte each into slices of at most ``limit`` bytes."""
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


def _check_independent(output: Any, probed: Any, size: int, index: list[int]) -> None:
    """Raise unless the probed samples' outputs are the same as within their batch."""
    for full, alone in zip(tree_leaves(output), tree_leaves(probed), strict=False):
        if not (_has_samples(full, size) and isinstance(alone, Tensor) and full.is_floating_point()):
            continue
        if full.shape[1:] == alone.shape[1:] and not close(full.detach(), alone.detach(), index):
            raise ValueError(
                "the output for one sample depends on the other samples of its batch, or on chance, even in "
                "eval mode, so no per-sample gradient exists; use layers that treat samples apart "
                "(running statistics, no sampling in eval mode)"
            )
