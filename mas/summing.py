"""From the gradients at layers' outputs, which a backward pass computes, to moments of per-sample gradients."""

import operator
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from mas.batches import chunks
from mas.fallback import accumulate, zeros_for
from mas.recording import LayerCall
from mas.rules.rule import folded

_CACHE_BYTES = 2**20  # limit of per-sample gradients at a time on a CPU: small enough for its cache
_DEVICE_BYTES = 256 * 2**20  # the same on an accelerator, which is faster with few large operations


class Contribution(NamedTuple):
    """What one layer call contributes to a parameter's gradient."""

    call: LayerCall
    role: str  # of the parameter in the call: "weight" or "bias"
    gradient: Tensor  # of the objective, at the call's output


class MomentAccumulator:
    """Sums of moments over samples.

    Attributes:
        total: by parameter name, the sum of moments so far.
    """

    def __init__(self, params: dict[str, nn.Parameter], moment: str, max_bytes: int | None):
        self.params = params
        self.moment = moment
        self.max_bytes = max_bytes
        self.total = {name: zeros_for(p) for name, p in params.items()}

    def add(self, name: str, contributions: list[Contribution]) -> None:
        """Add the moment of one parameter's gradient, the sum of the contributions of all its calls."""
        total = self.total[name]
        if len(contributions) == 1 and self._add_directly(name, contributions[0]):
            return
        layout = contributions[0].call.layout
        size = layout.samples if layout else 0
        output_numbers = sum(c.gradient.numel() for c in contributions) // size
        bytes_per_sample = (total.numel() + output_numbers) * total.element_size()
        for rows in chunks(size, self._limit(total), bytes_per_sample):
            accumulate(total, self._per_sample(name, contributions, rows), self.moment)

    def is_parameter(self, name: str, contribution: Contribution) -> bool:
        """Return whether the call used the parameter itself, not a tensor derived from it."""
        call, role, _ = contribution
        return call.sources[role] is self.params[name]

    def add_folded(self, call: LayerCall, columns: Tensor, excluded: Set[str]) -> None:
        """Add the moments of a call's own parameters for several output gradients, shape (K, *output).

        The call folds, and its parameters have no other call.
        """
        gradient = folded(columns, self.moment)
        for role, names in call.names.items():
            for name in set(names) - excluded:
                self.add(name, [Contribution(call, role, gradient)])

    def _add_directly(self, name: str, contribution: Contribution) -> bool:
        """Add the moment without per-sample gradients and return True, or return False if that is not possible."""
        if not self.is_parameter(name, contribution):
            return False
        call, role, gradient = contribution
        total = self.total[name]
        g, a = call.part(gradient, slice(None), total.dtype)
        return call.rule.add_moment(total, role, g, a, self.moment)

    def _limit(self, total: Tensor) -> int:
        if self.max_bytes:
            return self.max_bytes
        return _CACHE_BYTES if total.device.type == "cpu" else _DEVICE_BYTES

    def _per_sample(self, name: str, contributions: list[Contribution], rows: slice) -> Tensor:
        """Return a parameter's gradients for some samples, shape (n, *parameter)."""
        rule = contributions[0].call.rule
        if rule.join and self._can_join(name, contributions):
            dtype = self.total[name].dtype
            parts = [c.call.part(c.gradient, rows, dtype) for c in contributions]
            return rule.weight(*rule.join(parts))
        gradients = (self._gradient(name, contribution, rows) for contribution in contributions)
        return reduce(operator.iadd, gradients)

    def _can_join(self, name: str, contributions: list[Contribution]) -> bool:
        """Return whether several calls of one function use the parameter itself as their weight."""
        rules = {contribution.call.rule for contribution in contributions}
        if len(contributions) == 1 or len(rules) > 1:
            return False
        return all(c.role == "weight" and self.is_parameter(name, c) for c in contributions)

    def _gradient(self, name: str, contribution: Contribution, rows: slice) -> Tensor:
        """Return one call's contribution to the gradients of some samples."""
        call, role, gradient = contribution
        of_source = call.per_sample(role, gradient, rows, self.total[name].dtype)
        if self.is_parameter(name, contribution):
            return of_source
        of_parameter = _pull_back(call.sources[role], self.params[name], of_source)
        return of_parameter.to(of_source.dtype)


class GradientCollector:
    """Collect the output gradients of layer calls; add a parameter's moment once those of all its calls are there.

    Args:
        accumulator: what the moments are added to.
        calls: all recorded calls.
        excluded: names of parameters to leave out.
        keep: keep the calls' arguments for another backward pass. By default they are released
            during the pass, so that it frees memory as a plain backward pass does.
    """

    def __init__(
        self,
        accumulator: MomentAccumulator,
        calls: Sequence[LayerCall],
        *,
        excluded: Set[str] = frozenset(),
        keep: bool = False,
    ):
        self.accumulator = accumulator
        self.excluded = excluded
        self.keep = keep
        self.pending: dict[str, list[Contribution]] = defaultdict(list)
        self.expected: Counter[str] = Counter()  # number of contributions by parameter name
        for call in calls:
            for names in call.names.values():
                self.expected.update(names)

    def add(self, call: LayerCall, gradient: Tensor) -> None:
        """Take the gradient at a call's output; add the moments of parameters that are complete with it.

        Raises:
            RuntimeError: the call's input was overwritten in place.
        """
        refuse_overwritten(call)
        for role, names in call.names.items():
            for name in names:
                if name not in self.excluded:
                    self.pending[name].append(Contribution(call, role, gradient))
        included = call.parameters - self.excluded
        if all(self._is_complete(name) and self._is_ready(name) for name in included):
            self._add_moments(included)

    def finish(self) -> None:
        """Add the moments of the remaining parameters: the objective does not depend on all of their calls."""
        self._add_moments(set(self.pending))

    def _is_complete(self, name: str) -> bool:
        return len(self.pending[name]) == self.expected[name]

    def _is_ready(self, name: str) -> bool:
        """Return whether a moment needs no backward pass of its own, which cannot run within another one."""
        return all(self.accumulator.is_parameter(name, contribution) for contribution in self.pending[name])

    def _add_moments(self, names: Set[str]) -> None:
        for name in names & self.pending.keys():
            contributions = self.pending.pop(name)
            self.accumulator.add(name, contributions)
            if not self.keep:
                self._release(contributions)

    def _release(self, contributions: list[Contribution]) -> None:
        """Drop the arguments of calls that no pending parameter needs."""
        for call, _, _ in contributions:
            if not call.parameters & self.pending.keys():
                call.arguments = {}


def refuse_overwritten(call: LayerCall) -> None:
    """Raise RuntimeError if the input of a call was overwritten in place after it."""
    if call.overwritten:
        raise RuntimeError(
            f"the input of the layer with {', '.join(sorted(call.parameters))} was overwritten in place "
            "after its use; make that operation out of place"
        )


def backward(objective: Tensor, calls: Sequence[LayerCall], collector: GradientCollector, *, keep: bool) -> None:
    """Run one backward pass down to the recorded outputs; it computes no weight gradient.

    The gradients at the outputs of `_first_calls` are the result of the pass; hooks take all other
    ones during the pass.

    Args:
        objective: a scalar.
        calls: the recorded calls.
        collector: takes the gradients.
        keep: keep the graph for another pass.
    """
    first = _first_calls(calls)
    others = set(calls).difference(first)
    hooks = [call.edge.node.register_prehook(partial(_collect, collector, call)) for call in others if call.edge]
    try:
        edges = [call.edge for call in first if call.edge is not None]
        gradients = torch.autograd.grad(objective, edges, retain_graph=keep, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for call, gradient in zip(first, gradients, strict=True):
        if gradient is not None:  # the objective depends on this call
            collector.add(call, gradient)
    collector.finish()


def _collect(collector: GradientCollector, call: LayerCall, gradients: Sequence[Tensor | None]) -> None:
    """Take a call's gradient from those of its node's outputs: a hook of autograd."""
    if call.edge is None:
        return
    gradient = gradients[call.edge.output_nr]
    if gradient is not None:
        collector.add(call, gradient)


def _first_calls(calls: Sequence[LayerCall]) -> list[LayerCall]:
    """Return the recorded calls whose inputs do not depend on another recorded call."""
    recorded = {call.edge.node for call in calls if call.edge is not None}
    depends: dict[Node, bool] = {}
    for call in calls:
        _mark_dependent(call.inputs, recorded, depends)
    first = []
    for call in calls:
        nodes = [node for node in call.inputs if node is not None]
        if not any(depends[node] for node in nodes):
            first.append(call)
    return first


def _mark_dependent(nodes: Sequence[Node | None], recorded: Set[Node], depends: dict[Node, bool]) -> None:
    """Enter for each node of a graph whether it is a recorded node or depends on one.

    The walk is depth first and visits each node again after those that it depends on.
    """
    stack = [(node, False) for node in nodes]
    while stack:
        node, children_done = stack.pop()
        if node is None:
            continue
        if children_done:
            children = [child for child, _ in node.next_functions if child is not None]
            depends[node] = node in recorded or any(depends.get(child, False) for child in children)
        elif node not in depends:
            depends[node] = False
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions)


def _pull_back(source: Tensor, parameter: Tensor, gradients: Tensor) -> Tensor:
    """Return per-sample gradients of a parameter, given those of a tensor derived from it.

    Args:
        source: derived from the parameter.
        parameter: the parameter.
        gradients: of the source, shape (n, *source).
    """
    gradients = gradients.to(source.dtype)
    try:
        (found,) = torch.autograd.grad(source, [parameter], gradients, retain_graph=True, is_grads_batched=True)
    except RuntimeError:  # an operation has no batched backward
        each = [torch.autograd.grad(source, [parameter], g, retain_graph=True)[0] for g in gradients]
        found = torch.stack(each)
    return found.contiguous()
