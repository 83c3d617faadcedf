"""The engine: sums over samples of |g| or g squared, g the gradient of an objective for one sample.

How it works. The forward pass is recorded (`mas.recording`): every call of a layer function with
parameters, its input, and its output's node in the autograd graph. One backward pass, which
computes no weight gradients, then computes the gradient of every recorded output, and the
function's closed form (`mas.rules`) turns (input, gradient) into the moment (`mas.summing`).

A parameter that is still reachable in the graph is also used in some other way. The fallback
(`mas.fallback`) then computes the gradient of all its uses: by `vmap(grad)`, or, where that fails,
by one backward pass per sample. So a missing closed form costs time, but the result is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from mas.batches import Batch, Forward, batch_size, first_samples, run_forward, select_samples
from mas.columns import add_columns, can_fold
from mas.fallback import Fallback, accumulate
from mas.recording import Key, LayerCall, Layout, Recorder, close, leaves, locate
from mas.state import named_parameters, preserving_state, unwrap_model
from mas.summing import GradientCollector, MomentAccumulator, backward

Objective = Callable[[Any, Batch], Tensor]
Moment = Literal["abs", "square"]
Reduction = Literal["sample", "batch"]

# ends the messages about values that are not finite
DIVERGED = "if the network has diverged, use a lower learning rate or strength"


def per_sample_moments(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    *,
    moment: Moment = "abs",
    forward: Forward | None = None,
    max_bytes: int | None = None,
) -> dict[str, Tensor]:
    """Return the sum over the samples of a batch of |g| or g squared, exact per sample.

    For sample n and parameter θ, g_n = ∂ objective_n / ∂θ. The absolute value or the square is
    taken per sample, *before* the sum; moments of the batch-mean gradient are a different, smaller
    quantity.

    Args:
        model: any module. It is run in eval mode, and its state is restored. Hooks on parameters
            are not called.
        batch: a tensor, or a nest of tuples, lists and dicts of tensors with samples on axis 0.
        objective: ``objective(output, batch)`` returns one number per sample, shape (N,), or K
            numbers per sample, shape (N, K), whose moments are summed.
        moment: "abs" for Σ_n |g_n| (MAS), "square" for Σ_n g_n² (Fisher information).
        forward: ``forward(model, batch)`` returns the output; by default ``model(batch)``, or
            ``model(batch[0])`` for a tuple or list.
        max_bytes: limit of the memory for per-sample gradients at a time, in bytes; one sample's
            gradients are always computed. By default 1 MiB on a CPU (the size of a cache),
            256 MiB on an accelerator, and 64 MiB where `vmap` is needed.

    Returns:
        For every parameter that requires a gradient: its name and a tensor of its shape, in its
        dtype (float32 for half precision). A *sum* over samples: divide by N for a mean. Zeros
        for a parameter that the objective does not depend on.

    Raises:
        ValueError: no parameter requires a gradient; the objective has the wrong shape or does
            not depend on the parameters; samples of the batch influence each other; model and
            batch are on different devices.
        FloatingPointError: the objective or a moment is not finite.
        RuntimeError: the exact per-sample gradient of a parameter cannot be computed by any method.

    For a linear model y = w x and the objective y, the gradient for sample n is x_n:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> batch = torch.tensor([[1.0], [-2.0], [4.0]])
    >>> per_sample_moments(model, batch, lambda output, batch: output[:, 0], moment="abs")
    {'weight': tensor([[7.]])}
    >>> per_sample_moments(model, batch, lambda output, batch: output[:, 0], moment="square")
    {'weight': tensor([[21.]])}
    """
    with preserving_state(model):
        engine = SamplePass(model, objective, moment=moment, forward=forward, max_bytes=max_bytes)
        engine.add(batch)
        return engine.result()


def mean_moments(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    *,
    moment: Moment = "abs",
    forward: Forward | None = None,
    max_samples: int | None = None,
    max_bytes: int | None = None,
    reduction: Reduction = "sample",
) -> dict[str, Tensor]:
    """Return the mean over the samples of many batches of |g| or g squared, see `per_sample_moments`.

    Args:
        model, objective, moment, forward, max_bytes: as for `per_sample_moments`.
        batches: any iterable of batches, such as a data loader; sizes may differ.
        max_samples: use only this many samples, the first ones in ``batches``.
        reduction: "sample" is the mean over samples of moments per sample. "batch" is the mean
            over batches of the moment of the batch-mean gradient: it depends on the batch size
            and exists only to reproduce the numbers of other libraries.

    Raises:
        ValueError: ``batches`` gives no sample, or as `per_sample_moments`.
    """
    if reduction not in _PASSES:
        raise ValueError(f"reduction is {reduction!r}; known are {', '.join(map(repr, _PASSES))}")
    kind = _PASSES[reduction]
    with preserving_state(model):
        engine = kind(model, objective, moment=moment, forward=forward, max_bytes=max_bytes)
        return engine.mean_over(batches, max_samples)


class Pass(ABC):
    """One importance pass over one model: ``total`` is the sum of moments over ``count`` samples.

    A subclass implements `_add`, which adds the moments of a batch.
    """

    recorder: type[Recorder] = Recorder

    def __init__(
        self,
        model: nn.Module,
        *,
        moment: Moment,
        forward: Forward | None = None,
        max_bytes: int | None = None,
    ):
        if moment not in ("abs", "square"):
            raise ValueError(f"moment is {moment!r}; known are 'abs' and 'square'")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; give a number of at least 1, or None for the default")
        self.model = unwrap_model(model)
        self.moment = moment
        self.forward = forward or run_forward
        self.max_bytes = max_bytes
        self.params = trained_parameters(model)
        for name, parameter in self.params.items():
            if parameter.is_complex():
                raise ValueError(f"parameter {name!r} is complex; importance is defined for real parameters: freeze it")
        self.skip: set[Key] = set()  # calls without a sample axis
        self.layouts: dict[Key, list[Layout | None]] = {}  # of each call, by batch size and shapes
        self.accumulator = MomentAccumulator(self.params, moment, max_bytes)
        self.count = 0

    @property
    def total(self) -> dict[str, Tensor]:
        """The sum of moments so far, by parameter name."""
        return self.accumulator.total

    def add(self, batch: Batch) -> None:
        """Add the moments of a batch; one without samples adds nothing."""
        if batch_size(batch):
            with torch.enable_grad():
                self._add(tree_map(_without_inference_mode, batch))

    @abstractmethod
    def _add(self, batch: Batch) -> None:
        """Add the moments of a batch that has samples, and count them."""

    def mean_over(self, batches: Iterable[Batch], max_samples: int | None = None) -> dict[str, Tensor]:
        """Return the mean over the samples of many batches, or over the first ``max_samples`` of them.

        Raises:
            ValueError: ``batches`` is a single tensor or holds no sample.
            FloatingPointError: a mean is not finite.
        """
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
        for name, is_finite in _finite(self.total).items():
            if not is_finite:
                raise FloatingPointError(
                    f"importance of {name!r} is not finite: its gradients are NaN or too large for "
                    f"{self.total[name].dtype}; {DIVERGED}"
                )
        return self.total

    def _record(self, batch: Batch) -> tuple[Any, Recorder]:
        """Run forward until the sample axis of every recorded call is known; return the output and the recorder."""
        size = batch_size(batch)
        while True:
            recorder, output = self._record_once(batch)
            self._locate_samples(recorder, batch, output, size)
            not_located = {call.key for call in recorder.calls if call.layout is None}
            if not not_located:
                return output, recorder
            self.skip |= not_located  # their parameters stay in the graph, for another rule or the fallback

    def _record_once(self, batch: Batch) -> tuple[Recorder, Any]:
        recorder = self.recorder(self.params, self.model, self.skip)
        try:
            with recorder:
                return recorder, self._run(batch)
        except RuntimeError:  # such as a model that asks for gradients of its own parameters
            return self.recorder(self.params, self.model, self.skip), self._run(batch)

    def _run(self, batch: Batch) -> Any:
        of_model = {p.device for p in self.params.values()}
        of_batch = {leaf.device for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}
        if self.forward is run_forward and of_batch and of_model.isdisjoint(of_batch):
            raise ValueError(
                f"the model is on {of_model.pop()} and the batch on {of_batch.pop()}; "
                "move the batches, or give forward=lambda model, batch: ..."
            )
        return self.forward(self.model, batch)

    def _locate_samples(self, recorder: Recorder, batch: Batch, output: Any, size: int) -> None:
        """Find the sample axis of every recorded call: the one that changes with the batch size.

        Shapes alone are ambiguous (a sequence-first input may be as long as the batch is large), so
        the forward pass is run once more on a probe, a batch of another size. The same run shows
        whether the samples of a batch influence each other; then no per-sample gradient exists.
        The result is reused for later batches of the same shapes, unless the model picks rows by
        their values: then every batch is probed, with all of its samples.
        """
        calls = recorder.calls
        shapes = [(call.key, call.shape) for call in calls]
        key = (size, *shapes)
        if recorder.picks_rows or key not in self.layouts:
            index = _probe_index(size, all_samples=recorder.picks_rows)
            samples = select_samples(batch, index, size)
            probe_recorder, probe_output = self._record_once(samples)
            axes = _check_independent(output, probe_output, size, index)
            self._check_objective(output, batch, _Probe(index, samples, axes))
            self.layouts[key] = locate(calls, probe_recorder.calls, size, index)
        for call, layout in zip(calls, self.layouts[key], strict=True):
            call.layout = layout
            call.observed = None

    def _check_objective(self, output: Any, batch: Batch, probe: "_Probe") -> None:
        """Do nothing: subclasses raise ValueError if the objective mixes samples although the output does not."""
        return


@dataclass(frozen=True)
class _Probe:
    """Some samples of a batch, on which the model is run to find the sample axes."""

    index: list[int]  # the samples' indices in the batch
    samples: Batch
    axes: list[int | None]  # the sample axis of each tensor of the output; None if unknown


class SamplePass(Pass):
    """Moments of the per-sample gradients of one objective of the model's output."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        moment: Moment,
        forward: Forward | None = None,
        max_bytes: int | None = None,
    ):
        super().__init__(model, moment=moment, forward=forward, max_bytes=max_bytes)
        self.objective = objective

    def _add(self, batch: Batch) -> None:
        output, recorder = self._record(batch)
        calls = recorder.calls
        values = self._values(output, batch)
        uncovered = self._uncovered_parameters(calls, values)
        self._add_closed_forms(calls, uncovered, values)
        del calls, recorder, output  # frees the graph before the fallback runs
        if uncovered:
            self._add_by_fallback(uncovered, batch, values.shape)
        self.count += len(values)

    def _values(self, output: Any, batch: Batch) -> Tensor:
        """Return the objective, shape (N, K).

        Raises:
            ValueError: it has another shape, or does not depend on the parameters.
            FloatingPointError: it is not finite.
        """
        values = self.objective(output, batch)
        size = batch_size(batch)
        if not isinstance(values, Tensor) or values.ndim not in (1, 2) or len(values) != size:
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
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

    def _check_objective(self, output: Any, batch: Batch, probe: _Probe) -> None:
        """Raise ValueError if the objective of one sample depends on the others."""
        if all(axis is None for axis in probe.axes):
            return
        try:
            whole = self.objective(output, batch).detach()
            part = self.objective(_select_outputs(output, probe), probe.samples).detach()
        except Exception:  # noqa: BLE001 - it may hold tensors of the batch's size; errors are raised by `_values`
            return
        if whole.ndim == 0 or part.ndim == 0:
            return
        has_samples = len(whole) == batch_size(batch) and len(part) == len(probe.index)
        if has_samples and not close(whole, part, probe.index):
            raise ValueError(
                "the objective of one sample depends on the other samples of its batch, so no per-sample gradient "
                "exists; compute it from each sample's output alone"
            )

    def _uncovered_parameters(self, calls: list[LayerCall], values: Tensor) -> set[str]:
        """Return the names of the parameters with a use that no closed form covers.

        The graph is searched from the objective and from the inputs of the recorded calls, but not
        through their outputs. A parameter, or an alias of one, that is found there is also used in
        another way, such as in a graph of second derivatives.
        """
        names_by_id: dict[int, tuple[str, ...]] = {id(p): (name,) for name, p in self.params.items()}
        roots = [values.grad_fn]
        recorded = set()
        for call in calls:
            for role, alias in call.aliases.items():
                names_by_id[id(alias)] = call.names[role]
            roots += call.inputs
            if call.edge is not None:
                recorded.add(call.edge.node)
        uncovered: set[str] = set()
        for leaf in leaves(roots, cut=recorded):
            uncovered.update(names_by_id.get(id(leaf), ()))
        return uncovered

    def _add_closed_forms(self, calls: list[LayerCall], uncovered: set[str], values: Tensor) -> None:
        needed = [call for call in calls if not uncovered.issuperset(call.parameters)]
        columns = values.shape[1]
        if columns > 1 and can_fold(self.accumulator, needed):
            add_columns(self.accumulator, values, needed, excluded=uncovered)
            return
        for k in range(columns if needed else 0):
            keep = k < columns - 1
            collector = GradientCollector(self.accumulator, needed, excluded=uncovered, keep=keep)
            backward(values[:, k].sum(), needed, collector, keep=keep)

    def _add_by_fallback(self, names: set[str], batch: Batch, shape: torch.Size) -> None:
        """Add the moments of parameters without a closed form."""
        params = {name: p for name, p in self.params.items() if name in names}
        fallback = Fallback(self.model, self.objective, self.forward, self.moment, params, self.max_bytes)
        size, columns = shape
        for name, moment in fallback.moments(batch, size, columns).items():
            self.total[name] += moment


class BatchPass(SamplePass):
    """Moments of batch-mean gradients, as in other libraries; ``count`` is the number of batches."""

    def _add(self, batch: Batch) -> None:
        output = self._run(batch)
        values = self._values(output, batch)
        params = list(self.params.values())
        for k in range(values.shape[1]):
            mean = values[:, k].mean()
            gradients = torch.autograd.grad(mean, params, retain_graph=True, allow_unused=True)
            for total, gradient in zip(self.total.values(), gradients, strict=True):
                if gradient is not None:
                    accumulate(total, gradient[None].to(total.dtype, copy=True), self.moment)
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
    """Return for each moment with values whether all of them are finite; synchronise with the device only once."""
    filled = {name: moment for name, moment in moments.items() if moment.numel()}
    if not filled:
        return {}
    device = next(iter(filled.values())).device
    # No moment is negative, so the largest value is finite if all are; this needs no tensor of booleans.
    flags = [moment.amax().isfinite().to(device) for moment in filled.values()]
    return dict(zip(filled, torch.stack(flags).tolist(), strict=True))


def _without_inference_mode(leaf: Any) -> Any:
    """Return a tensor that autograd may save: a copy of one that was made in inference mode."""
    if isinstance(leaf, Tensor) and leaf.is_inference():
        return leaf.clone()
    return leaf


def _probe_index(size: int, *, all_samples: bool) -> list[int]:
    """Return indices of samples in another order and number, such that no two samples just swap places."""
    if all_samples:
        return [*reversed(range(size)), 0]
    index = [size - 1, 0, size // 2]
    if size == len(index):
        index.append(1)
    return index


def _select_outputs(output: Any, probe: _Probe) -> Any:
    """Return the rows of an output that belong to the probe's samples."""
    parts, spec = tree_flatten(output)
    selected = []
    for part, axis in zip(parts, probe.axes, strict=True):
        if axis is None:
            selected.append(part)
        else:
            index = torch.tensor(probe.index, device=part.device)
            selected.append(part.index_select(axis, index))
    return tree_unflatten(selected, spec)


def _check_independent(output: Any, probe_output: Any, size: int, index: list[int]) -> list[int | None]:
    """Return the sample axis of each tensor of the output; None where it is unknown.

    Raises:
        ValueError: the output for a probed sample differs from that within its batch.
    """
    parts = tree_leaves(output)
    probe_parts = tree_leaves(probe_output)
    if len(parts) != len(probe_parts):
        return [None] * len(parts)
    axes = []
    for part, probe_part in zip(parts, probe_parts, strict=True):
        axis = _sample_axis(part, probe_part, size, len(index))
        axes.append(axis)
        if axis is None or not part.is_floating_point():
            continue
        rows = part.detach().movedim(axis, 0)
        probe_rows = probe_part.detach().movedim(axis, 0)
        if not close(rows, probe_rows, index):
            raise ValueError(
                "the output for one sample depends on the other samples of its batch, or on chance, even in "
                "eval mode, so no per-sample gradient exists; use layers that treat samples apart "
                "(running statistics, no sampling in eval mode)"
            )
    return axes


def _sample_axis(part: Any, probe_part: Any, size: int, probe_size: int) -> int | None:
    """Return the only axis whose length differs, if it changes from ``size`` to ``probe_size``; else None."""
    if not isinstance(part, Tensor) or not isinstance(probe_part, Tensor) or part.ndim != probe_part.ndim:
        return None
    lengths = list(zip(part.shape, probe_part.shape, strict=True))
    changed = [axis for axis, (full, probed) in enumerate(lengths) if full != probed]
    if len(changed) != 1:
        return None
    (axis,) = changed
    return axis if lengths[axis] == (size, probe_size) else None
