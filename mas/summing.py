"""From gradients at layers' outputs, as a backward pass brings them, to moments of parameters' gradients per sample."""

import operator
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from mas.batches import chunks
from mas.fallback import accumulate, zeros_for
from mas.recording import LayerCall

Contribution = tuple[LayerCall, str, Tensor]  # a use, "weight" or "bias", the gradient of its output

_CACHE_BYTES = 2**20  # of per-sample gradients at once on a CPU: what stays in its cache is quick
_DEVICE_BYTES = 256 * 2**20  # the same on an accelerator, where a few large operations are quick


class MomentAccumulator:
    """``total``: by parameter name, the sum of moments so far."""

    def __init__(self, params: dict[str, nn.Parameter], moment: str, max_bytes: int | None):
        self.params, self.moment, self.max_bytes = params, moment, max_bytes
        self.total = {name: zeros_for(p) for name, p in params.items()}

    def add(self, name: str, shares: list[Contribution]) -> None:
        """Add the moment of one parameter; the gradients of all its uses are summed first."""
        total, (use, role, gradient) = self.total[name], shares[0]
        size = use.layout.samples if use.layout else 0
        if len(shares) == 1 and self._is_parameter(name, shares[0]):
            part = use.part(gradient, slice(None), total.dtype)
            if use.rule.add_moment(total, role, *part, self.moment):
                return
        one = total.numel() + sum(g.numel() for _, _, g in shares) // size
        for rows in chunks(size, self._limit(total), one * total.element_size()):
            accumulate(total, self._per_sample(name, shares, rows), self.moment)

    def _limit(self, total: Tensor) -> int:
        return self.max_bytes or (_CACHE_BYTES if total.device.type == "cpu" else _DEVICE_BYTES)

    def _is_parameter(self, name: str, share: Contribution) -> bool:
        """Tell whether the parameter itself was used, not something derived from it."""
        use, role, _ = share
        return use.sources[role] is self.params[name]

    def _per_sample(self, name: str, shares: list[Contribution], rows: slice) -> Tensor:
        dtype, rules = self.total[name].dtype, {use.rule for use, _, _ in shares}
        join = next(iter(rules)).join if len(rules) == 1 and len(shares) > 1 else None
        if join and all(role == "weight" and self._is_parameter(name, (use, role, g)) for use, role, g in shares):
            return rules.pop().weight(*join([use.part(g, rows, dtype) for use, _, g in shares]))
        return reduce(operator.iadd, (self._share(name, share, rows) for share in shares))

    def _share(self, name: str, share: Contribution, rows: slice) -> Tensor:
        """Give the per-sample gradient that one use contributes."""
        use, role, gradient = share
        found = use.per_sample(role, gradient, rows, self.total[name].dtype)
        if self._is_parameter(name, share):
            return found
        return _pulled_back(use.sources[role], self.params[name], found).to(found.dtype)


class GradientCollector:
    """Gradients of outputs as they come in. A parameter is added once all its uses are there.

    What is no longer needed is let go, so that a backward pass frees memory on its way as a plain
    one does: ``keep`` keeps it for another pass.
    """

    def __init__(
        self, sums: MomentAccumulator, uses: Sequence[LayerCall], slow: Set[str] = frozenset(), keep: bool = False
    ):
        self.sums, self.slow, self.keep = sums, slow, keep
        self.shares: dict[str, list[Contribution]] = defaultdict(list)
        self.expected = Counter(name for use in uses for names in use.names.values() for name in names)

    def add(self, use: LayerCall, gradient: Tensor) -> None:
        """Take the gradient at a use's output; add the parameters that are complete by it."""
        if use.overwritten:
            raise RuntimeError(
                f"the input of the layer with {', '.join(sorted(use.parameters))} was overwritten in place "
                "after its use; make that operation out of place"
            )
        for role, names in use.names.items():
            for name in names:
                if name not in self.slow:
                    self.shares[name].append((use, role, gradient))
        if all(self._complete(name) and self._at_once(name) for name in use.parameters - self.slow):
            self._finish(use.parameters - self.slow)

    def finish(self) -> None:
        """Add the parameters that are left: the objective does not depend on all their uses."""
        self._finish(set(self.shares))

    def _complete(self, name: str) -> bool:
        return len(self.shares[name]) == self.expected[name]

    def _at_once(self, name: str) -> bool:
        """Tell whether a parameter can be added in the middle of the backward pass, where no other can be run."""
        return all(self.sums._is_parameter(name, share) for share in self.shares[name])

    def _finish(self, names: Set[str]) -> None:
        for name in names & self.shares.keys():
            shares = self.shares.pop(name)
            self.sums.add(name, shares)
            if not self.keep:
                for use, _, _ in shares:
                    if not use.parameters & self.shares.keys():
                        use.arguments = {}


def backward(objective: Tensor, uses: Sequence[LayerCall], collector: GradientCollector, keep: bool) -> None:
    """Run one backward pass down to the noted outputs, which computes no weight gradient at all.

    Each gradient is taken as the pass comes by, but for those that end it: autograd gives them.
    """
    ends = _ends(uses)
    between = set(uses).difference(ends)
    hooks = [use.edge.node.register_prehook(partial(_take, collector, use)) for use in between if use.edge]
    try:
        edges = [use.edge for use in ends if use.edge is not None]
        gradients = torch.autograd.grad(objective, edges, retain_graph=keep, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for use, gradient in zip(ends, gradients, strict=True):
        if gradient is not None:  # the objective depends on this call
            collector.add(use, gradient)
    collector.finish()


def _take(collector: GradientCollector, use: LayerCall, gradients: Sequence[Tensor | None]) -> None:
    gradient = gradients[use.edge.output_nr] if use.edge else None
    if gradient is not None:
        collector.add(use, gradient)


def _ends(uses: Sequence[LayerCall]) -> list[LayerCall]:
    """Give the uses with no other one behind their inputs."""
    noted = {use.edge.node for use in uses if use.edge is not None}
    leads: dict[Any, bool] = {}  # to a noted node, this one or one behind it
    for use in uses:
        _mark(use.inputs, noted, leads)
    return [use for use in uses if not any(leads.get(node) for node in use.inputs)]


def _mark(nodes: Sequence[Any], noted: Set[Any], leads: dict[Any, bool]) -> None:
    """Walk a graph depth first, each node after those behind it."""
    stack = [(node, False) for node in nodes]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            leads[node] = node in noted or any(leads.get(behind, False) for behind, _ in node.next_functions)
        elif node is not None and node not in leads:
            leads[node] = False
            stack.append((node, True))
            stack.extend((behind, False) for behind, _ in node.next_functions)


def _pulled_back(source: Tensor, parameter: Tensor, gradients: Tensor) -> Tensor:
    """Give the gradients of a parameter, one per sample, from those of what is derived from it."""
    gradients = gradients.to(source.dtype)
    try:
        (found,) = torch.autograd.grad(source, [parameter], gradients, retain_graph=True, is_grads_batched=True)
    except RuntimeError:  # no batched form
        each = [torch.autograd.grad(source, [parameter], g, retain_graph=True)[0] for g in gradients]
        found = torch.stack(each)
    return found.contiguous()
