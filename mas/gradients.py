"""The engine: sums over samples of |g| or g squared, g the gradient of an objective for one sample.

How it works. The forward pass is recorded (`mas.recording`): every call of a layer function with
parameters, its input, and the place of its output in the autograd graph. One backward pass, which
computes no weight gradients at all, then gives the gradient of every noted output, and the
function's closed form (`mas.rules`) turns (input, gradient) into the moment.

A parameter that is still reachable in the graph was used in some other way as well. Such
parameters take the slow road, all of their uses together: `vmap(grad)`, or, where that cannot be,
one backward pass a sample. So a missing closed form costs time, never a wrong number.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from mas.batches import Batch, Forward, batch_size, first_samples, run_forward, samples
from mas.fallback import Fallback, accumulate
from mas.recording import Key, LayerCall, Layout, Recorder, close, leaves, locate
from mas.state import named_parameters, preserving_state, unwrap_model
from mas.summing import GradientCollector, MomentAccumulator, backward

Objective = Callable[[Any, Batch], Tensor]
Moment = Literal["abs", "square"]
Reduction = Literal["sample", "batch"]

DIVERGED = "if the network has diverged, use a lower learning rate or strength"  # the end of every such message


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
        model: any module. It is run in eval mode and left as it was found. Hooks on parameters
            are not called.
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
        FloatingPointError: the objective or a moment is not finite.
        RuntimeError: a parameter has no exact per-sample gradient by any road.

    For a linear model y = w x and the objective y, the gradient for sample n is x_n:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> batch = torch.tensor([[1.0], [-2.0], [4.0]])
    >>> per_sample_moments(model, batch, lambda output, batch: output[:, 0], "abs")
    {'weight': tensor([[7.]])}
    >>> per_sample_moments(model, batch, lambda output, batch: output[:, 0], "square")
    {'weight': tensor([[21.]])}
    """
    with preserving_state(model):
        engine = SamplePass(model, objective, moment, forward, max_bytes)
        engine.add(batch)
        return engine.result()


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
    with preserving_state(model):
        return _PASSES[reduction](model, objective, moment, forward, max_bytes).mean_over(batches, max_samples)


class Pass(ABC):
    """One importance pass over one model: ``total`` is the sum of moments over ``count`` samples.

    A subclass says by `_add` what the moments of a batch are.
    """

    recorder: type[Recorder] = Recorder

    def __init__(self, model: nn.Module, moment: Moment, forward: Forward | None = None, max_bytes: int | None = None):
        if moment not in ("abs", "square"):
            raise ValueError(f"moment is {moment!r}; known are 'abs' and 'square'")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; give a number of at least 1, or None for the default")
        self.model, self.moment = unwrap_model(model), moment
        self.forward, self.max_bytes = forward or run_forward, max_bytes
        self.params = trained_parameters(model)
        if wrong := [name for name, p in self.params.items() if p.is_complex()]:
            raise ValueError(f"parameter {wrong[0]!r} is complex; importance is defined for real parameters: freeze it")
        self.skip: set[Key] = set()  # calls without a sample axis: nothing per sample to note
        self.layouts: dict[Key, list[Layout | None]] = {}  # where samples lie in each layer's input
        self.sums, self.count = MomentAccumulator(self.params, moment, max_bytes), 0

    @property
    def total(self) -> dict[str, Tensor]:
        """The sum of moments so far, by parameter name."""
        return self.sums.total

    def add(self, batch: Batch) -> None:
        """Add the moments of a batch; one without samples adds nothing."""
        if batch_size(batch):
            with torch.enable_grad():
                self._add(tree_map(_ordinary, batch))

    @abstractmethod
    def _add(self, batch: Batch) -> None:
        """Add the moments of a batch that has samples, and count them."""

    def mean_over(self, batches: Iterable[Batch], max_samples: int | None = None) -> dict[str, Tensor]:
        """Give the mean over many batches, or over the first samples of them."""
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; give a number of at least 1, or None for all")
        if isinstance(batches, Tensor):
            raise ValueError("batches is a single tensor, whose items would be taken for batches; give a list: [x]")
        for batch in first_samples(batches, max_samples):
            self.add(batch)
        if self.count == 0:
            raise ValueError(
                "batches gave no sample; give a data loader or a list of batches (an iterator can be used only once)"
            )
        torch._foreach_div_(list(self.total.values()), float(self.count))
        return self.result()

    def result(self) -> dict[str, Tensor]:
        """Return `total`.

        Raises:
            FloatingPointError: a value in it is not finite.
        """
        for name, finite in _finite(self.total).items():
            if not finite:
                raise FloatingPointError(
                    f"importance of {name!r} is not finite: its gradients are NaN or too large for "
                    f"{self.total[name].dtype}; {DIVERGED}"
                )
        return self.total

    def _record(self, batch: Batch) -> tuple[Any, Recorder]:
        """Run forward until every noted call has its samples along a known axis."""
        size = batch_size(batch)
        while True:
            recorder, output = self._record_once(batch)
            self._locate_samples(recorder, batch, output, size)
            lost = {use.key for use in recorder.uses if use.layout is None}
            if not lost:
                return output, recorder
            self.skip |= lost  # the parameters stay in the graph, where others may take over

    def _record_once(self, batch: Batch) -> tuple[Recorder, Any]:
        recorder = self.recorder(self.params, self.model, self.skip)
        try:
            with recorder:
                return recorder, self._run(batch)
        except RuntimeError:  # such as a model that asks for gradients of its own parameters
            return self.recorder(self.params, self.model, self.skip), self._run(batch)

    def _run(self, batch: Batch) -> Any:
        used = {p.device for p in self.params.values()}
        given = {leaf.device for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}
        if self.forward is run_forward and given and used.isdisjoint(given):
            raise ValueError(
                f"the model is on {used.pop()} and the batch on {given.pop()}; "
                "move the batches, or give forward=lambda model, batch: ..."
            )
        return self.forward(self.model, batch)

    def _locate_samples(self, recorder: Recorder, batch: Batch, output: Any, size: int) -> None:
        """Find the sample axis of every noted input: the one that changes with the batch size.

        Shapes alone cannot tell (a sequence-first input may be as long as the batch is large), so
        the forward pass is run once more on a batch of another size. The same run shows whether
        the samples of a batch influence each other, in which case no per-sample gradient exists.
        What a few samples show holds for all later batches of the same shapes, unless the model
        picks rows by what is in them: then it takes all samples, and each batch anew.
        """
        uses = recorder.uses
        key = (size, *((use.key, use.shape) for use in uses))
        if recorder.picks_rows or key not in self.layouts:
            index = _probe(size, all_samples=recorder.picks_rows)
            fewer = samples(batch, index, size)
            probe, probed = self._record_once(fewer)
            axes = _check_independent(output, probed, size, index)
            self._check_objective(output, axes, batch, fewer, index)
            self.layouts[key] = locate(uses, probe.uses, size, index)
        for use, layout in zip(uses, self.layouts[key], strict=True):
            use.layout, use.seen = layout, None

    def _check_objective(
        self, output: Any, axes: list[int | None], batch: Batch, fewer: Batch, index: list[int]
    ) -> None:
        """Raise if what is differentiated mixes samples although the output does not: here nothing beyond it is."""
        return


class SamplePass(Pass):
    """Moments of the per-sample gradients of one objective of the model's output."""

    def __init__(self, model: nn.Module, objective: Objective, *settings: Any):
        super().__init__(model, *settings)
        self.objective = objective

    def _add(self, batch: Batch) -> None:
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

    def _check_objective(
        self, output: Any, axes: list[int | None], batch: Batch, fewer: Batch, index: list[int]
    ) -> None:
        """Raise if the objective of one sample depends on the others."""
        parts, spec = tree_flatten(output)
        rows = [
            part if axis is None else part.index_select(axis, torch.tensor(index, device=part.device))
            for part, axis in zip(parts, axes, strict=True)
        ]
        if all(axis is None for axis in axes):
            return
        try:
            whole = self.objective(output, batch).detach()
            part = self.objective(tree_unflatten(rows, spec), fewer).detach()
        except Exception:  # noqa: BLE001 - it may hold tensors of the batch's size, or complain: that comes later
            return
        counted = whole.ndim and part.ndim and (len(whole), len(part)) == (batch_size(batch), len(index))
        if counted and not close(whole, part, index):
            raise ValueError(
                "the objective of one sample depends on the other samples of its batch, so no per-sample gradient "
                "exists; compute it from each sample's output alone"
            )

    def _slow_params(self, uses: list[LayerCall], values: Tensor) -> set[str]:
        """Name the parameters with a use that no closed form covers.

        The graph is followed beyond the noted outputs to what went in, but not through them: a
        parameter, or an alias of one, that is still found was used in another way as well, such
        as by a graph of gradients of gradients.
        """
        of: dict[int, tuple[str, ...]] = {id(p): (name,) for name, p in self.params.items()}
        of |= {id(alias): use.names[role] for use in uses for role, alias in use.aliases.items()}
        roots = [values.grad_fn, *(node for use in uses for node in use.inputs)]
        found = leaves(roots, cut={use.edge.node for use in uses if use.edge is not None})
        return {name for leaf in found for name in of.get(id(leaf), ())}

    def _add_closed_forms(self, uses: list[LayerCall], slow: set[str], objective: Tensor, keep: bool) -> None:
        noted = [use for use in uses if not slow.issuperset(use.parameters)]
        if noted:
            backward(objective, noted, GradientCollector(self.sums, noted, slow, keep), keep)

    def _add_slow(self, slow: set[str], batch: Batch, shape: torch.Size) -> None:
        """Add the moments of parameters without a closed form."""
        params = {name: p for name, p in self.params.items() if name in slow}
        road = Fallback(self.model, self.objective, self.forward, self.moment, params, self.max_bytes)
        for name, moment in road.moments(batch, *shape).items():
            self.total[name] += moment


class BatchPass(SamplePass):
    """Moments of batch-mean gradients, as other libraries have them: ``count`` counts batches."""

    def _add(self, batch: Batch) -> None:
        values = self._values(self._run(batch), batch)
        for k in range(values.shape[1]):
            found = torch.autograd.grad(
                values[:, k].mean(), list(self.params.values()), retain_graph=True, allow_unused=True
            )
            for total, g in zip(self.total.values(), found, strict=True):
                if g is not None:
                    accumulate(total, g[None].to(total.dtype, copy=True), self.moment)
        self.count += 1


_PASSES: dict[str, type[SamplePass]] = {"sample": SamplePass, "batch": BatchPass}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, by name.

    Raises:
        ValueError: there is none.
    """
    found = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    if not found:
        raise ValueError("no parameter of the model requires a gradient; call requires_grad_(True) on those to measure")
    return found


def check_finite(values: Tensor) -> None:
    """Raise FloatingPointError for the first sample with a value that is not finite."""
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).nonzero()[0, 0])
        raise FloatingPointError(
            f"objective is {values[bad].tolist()} for sample {bad} of the batch; check its input; {DIVERGED}"
        )


def _finite(moments: dict[str, Tensor]) -> dict[str, bool]:
    """Tell for each moment whether all its values are finite, in one wait for the device."""
    filled = {name: moment for name, moment in moments.items() if moment.numel()}
    if not filled:
        return {}
    device = next(iter(filled.values())).device
    # no moment is negative, so its largest value tells, and needs no tensor of booleans
    flags = [moment.amax().isfinite().to(device) for moment in filled.values()]
    return dict(zip(filled, torch.stack(flags).tolist(), strict=True))


def _ordinary(leaf: Any) -> Any:
    """Give a tensor that autograd may save; one made in inference mode is none."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _probe(size: int, all_samples: bool) -> list[int]:
    """Give samples in another order and number, such that no two that swap places stay partners."""
    if all_samples:
        return [*reversed(range(size)), 0]
    index = [size - 1, 0, size // 2]
    return index if size != len(index) else [*index, 1]


def _check_independent(output: Any, probed: Any, size: int, index: list[int]) -> list[int | None]:
    """Raise unless the probed samples' outputs are the same as within their batch; give the sample axes."""
    parts, others = tree_leaves(output), tree_leaves(probed)
    if len(parts) != len(others):
        return [None] * len(parts)
    axes = [_sample_axis(full, alone, size, len(index)) for full, alone in zip(parts, others, strict=True)]
    for full, alone, axis in zip(parts, others, axes, strict=True):
        if axis is None or not full.is_floating_point():
            continue
        if not close(full.detach().movedim(axis, 0), alone.detach().movedim(axis, 0), index):
            raise ValueError(
                "the output for one sample depends on the other samples of its batch, or on chance, even in "
                "eval mode, so no per-sample gradient exists; use layers that treat samples apart "
                "(running statistics, no sampling in eval mode)"
            )
    return axes


def _sample_axis(full: Any, alone: Any, size: int, probe: int) -> int | None:
    """Give the only axis whose length went from ``size`` to ``probe``."""
    if not (isinstance(full, Tensor) and isinstance(alone, Tensor) and full.ndim == alone.ndim):
        return None
    changed = [i for i, pair in enumerate(zip(full.shape, alone.shape, strict=True)) if pair[0] != pair[1]]
    fits = len(changed) == 1 and (full.shape[changed[0]], alone.shape[changed[0]]) == (size, probe)
    return changed[0] if fits else None
