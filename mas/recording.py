"""What a forward pass did with the parameters: which layer functions it called, and where the samples lay.

While the model runs, a `TorchFunctionMode` sees every call of a function. For one with a closed
form (`mas.rules`) its parameters are replaced by detached aliases, and the input and the place of
the output in the autograd graph are written down. What enters such a function instead of a
parameter may also be *derived* from parameters alone: a slice, a transpose, a normalised weight.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, disable_saved_tensors_hooks, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mas.rules import EXPANSIONS, RULES, Rule, refusal

Key = tuple[Any, ...]

# functions that pick rows by an index among their arguments, and those that do by the values themselves
_INDEXES = {
    *(Tensor.__getitem__, Tensor.__setitem__, torch.index_select, Tensor.index_select, torch.gather, Tensor.gather),
    *(torch.take_along_dim, Tensor.take_along_dim, torch.index_add, Tensor.index_add, Tensor.index_add_),
    *(torch.index_copy, Tensor.index_copy, Tensor.index_copy_, torch.scatter, Tensor.scatter, Tensor.scatter_),
    *(torch.scatter_add, Tensor.scatter_add, Tensor.scatter_add_, torch.masked_select, Tensor.masked_select),
    *(torch.masked_scatter, Tensor.masked_scatter, Tensor.masked_scatter_, Tensor.index_put, Tensor.index_put_),
    *(torch.scatter_reduce, Tensor.scatter_reduce, Tensor.scatter_reduce_, torch.index_put, torch.index_put_),
    *(torch.repeat_interleave, Tensor.repeat_interleave),
}
_PICKS = _INDEXES | {
    *(torch.sort, Tensor.sort, torch.topk, Tensor.topk, torch.nonzero, Tensor.nonzero, torch.unique, Tensor.unique),
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__index__),
}


@dataclass(frozen=True)
class Layout:
    """Where the samples lie: along an axis, alone or sharing it with positions."""

    axis: int
    samples: int
    order: str  # "alone", "samples first" (n, t in one axis, t the faster) or "positions first"

    def first(self, tensor: Tensor) -> Tensor:
        """Bring the samples to the front; positions that shared their axis come where that axis was."""
        if self.order == "samples first":
            return tensor.unflatten(self.axis, (self.samples, -1)).movedim(self.axis, 0)
        if self.order == "positions first":
            return tensor.unflatten(self.axis, (-1, self.samples)).movedim(self.axis + 1, 0)
        return tensor.movedim(self.axis, 0)


@dataclass(eq=False)
class LayerCall:
    """One call of a layer function with parameters of the model."""

    rule: Rule
    key: Key  # tells the calls of one forward pass apart
    sources: dict[str, Tensor]  # "weight" or "bias" -> a parameter, or a tensor derived from parameters
    names: dict[str, tuple[str, ...]]  # the same -> the names of those parameters
    arguments: dict[str, Any]
    shape: tuple[int, ...]  # of the input or output, whichever tells where the samples are
    version: int  # of the input: tells whether it was overwritten since
    seen: Tensor | None  # the input or output itself, until its samples are located
    aliases: dict[str, Tensor] = field(default_factory=dict)  # what stood in for the sources
    inputs: list[Any] = field(default_factory=list)  # the places in the autograd graph of all else that went in
    layout: Layout | None = None
    edge: GradientEdge | None = None  # the output's place in the autograd graph

    @property
    def parameters(self) -> set[str]:
        """The names of all parameters in this call."""
        return {name for names in self.names.values() for name in names}

    @property
    def overwritten(self) -> bool:
        """Whether the input is no longer what the layer saw."""
        return self.rule.needs_input and self.arguments["input"]._version != self.version

    def located(self) -> dict[str, Any]:
        """Give the arguments, with what a rule located by its output looks at."""
        if self.rule.sample_axis_from == "input" or self.layout is None:
            return self.arguments
        return self.arguments | {"axis": self.layout.axis, "shape": self.shape}

    def per_sample(self, role: str, gradient: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
        """Give the gradients of one source for some samples, shape (n, *source)."""
        g, a = self.part(gradient, rows, dtype)
        if self.layout is None or self.layout.order == "alone" or self.rule.positions:
            return self.rule.per_sample(role, g, a)
        each = self.rule.per_sample(role, g.flatten(0, 1), a | {"input": a["input"].flatten(0, 1)})
        return each.unflatten(0, g.shape[:2]).sum(1)

    def part(self, gradient: Tensor, rows: slice, dtype: torch.dtype) -> tuple[Tensor, dict[str, Any]]:
        """Give the output gradient and the arguments for some samples, samples first."""
        assert self.layout is not None, "uses without a layout take the slow road"  # noqa: S101 - for mypy
        a = self.located()
        if self.rule.needs_input:
            x = self.layout.first(a["input"].detach())[rows]
            a = a | {"input": x.to(dtype) if x.is_floating_point() else x}
        return self.layout.first(gradient)[rows].to(dtype), a


class Recorder(TorchFunctionMode):
    """Note every call of a function that has a rule with parameters of the model.

    Args:
        params: the parameters to look for, by name.
        model: whose modules a refusal names.
        skip: keys of calls to leave alone.
    """

    def __init__(self, params: dict[str, nn.Parameter], model: nn.Module, skip: set[Key]):
        super().__init__()
        self.names = {id(p): name for name, p in params.items()}
        self.model, self.skip = model, skip
        self.uses: list[LayerCall] = []
        self.calls: dict[Key, int] = defaultdict(int)
        self.picks_rows = False  # whether the model selected or sorted by what is in its tensors
        self.buffers = {id(b) for b in model.buffers()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and func in EXPANSIONS and not _checkpointed():
            with self:
                found = EXPANSIONS[func](*args, **kwargs)
            if found is not NotImplemented:
                return found
        self.picks_rows = self.picks_rows or self._picks_rows(func, args)
        rule = RULES.get(func)
        if rule is None or not torch.is_grad_enabled() or _any_complex(args):
            return func(*args, **kwargs)
        a = rule.bind(args, kwargs)
        if reason := refusal(func, a):
            raise ValueError(f"{self._owner(a)}: {reason}")
        return self._call(func, rule, args, kwargs, a)

    def _call(self, func: Any, rule: Rule, args: Any, kwargs: Any, a: dict[str, Any]) -> Any:
        names = self._sources(a)
        if rule.commutes and not names and self._parameters_behind(a.get("input")):
            a["input"], a["weight"] = a["weight"], a["input"]
            names = self._sources(a)
        if not names or _transformed(a.get("input")) or (key := self._key(func, names)) in self.skip:
            return func(*args, **kwargs)
        sources = {role: a[role] for role in names}
        aliases = {role: t.detach().requires_grad_() for role, t in sources.items()}
        alias = {id(t): aliases[role] for role, t in sources.items()}
        inputs = [t.grad_fn for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and id(t) not in alias]
        output = self._run(func, args, kwargs, alias)
        x = a.get("input")
        seen: Any = x if rule.sample_axis_from == "input" else output
        kept = a if rule.needs_input else {role: value for role, value in a.items() if role != "input"}
        version = x._version if isinstance(x, Tensor) else 0
        use = LayerCall(rule, key, sources, names, kept, tuple(seen.shape), version, seen.detach(), aliases, inputs)
        self._note(use, output)
        return output

    def _run(self, func: Any, args: Any, kwargs: Any, alias: dict[int, Tensor]) -> Tensor:
        """Call with aliases: the graph no longer leads to the parameters themselves."""
        return func(
            *(alias.get(id(arg), arg) for arg in args), **{k: alias.get(id(arg), arg) for k, arg in kwargs.items()}
        )

    def _note(self, use: LayerCall, output: Tensor) -> None:
        use.edge = get_gradient_edge(output)
        self.uses.append(use)

    def _picks_rows(self, func: Any, args: Any) -> bool:
        """Tell whether a call selects by the values of tensors, other than buffers such as a fixed table."""
        if func not in _PICKS:
            return False
        index = tree_leaves(args[1:]) if func in _INDEXES else tree_leaves(args)
        return any(isinstance(t, Tensor) and id(t) not in self.buffers for t in index)

    def _key(self, func: Any, names: dict[str, tuple[str, ...]]) -> Key:
        call = (func, *names.items())
        self.calls[call] += 1
        return (*call, self.calls[call])

    def _sources(self, a: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        behind = {role: self._parameters_behind(a.get(role)) for role in ("weight", "bias")}
        return {role: names for role, names in behind.items() if names}

    def _parameters_behind(self, tensor: Any) -> tuple[str, ...]:
        """Name the parameter that a tensor is, or those it is derived from; () if it is neither."""
        if not isinstance(tensor, Tensor) or not tensor.requires_grad or _transformed(tensor):
            return ()
        if id(tensor) in self.names:
            return (self.names[id(tensor)],)
        found = set()
        for leaf in leaves([tensor.grad_fn]):
            if id(leaf) not in self.names:
                return ()
            found.add(self.names[id(leaf)])
        return tuple(sorted(found))

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


def leaves(nodes: Iterable[Any], cut: Set[Any] = frozenset()) -> Iterator[Tensor | None]:
    """Give the leaf tensors that an autograd graph leads to, but not through the nodes in ``cut``.

    None stands for what is not a tensor's own node.

    Raises:
        ValueError: the graph holds a reentrant checkpoint, which shows only a part of it.
    """
    stack, seen = list(nodes), set(cut)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":  # its parameters are not in the graph at all
            raise ValueError(
                "a reentrant checkpoint hides its parameters from autograd; call checkpoint with use_reentrant=False"
            )
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)


def locate(
    uses: Sequence[LayerCall], probed: Sequence[LayerCall], size: int, index: Sequence[int]
) -> list[Layout | None]:
    """Tell where the samples lie in each use, by the same uses in a batch of ``index`` samples only."""
    twins = {use.key: use for use in probed}
    return [_layout(use, twins.get(use.key), size, index) for use in uses]


def _layout(use: LayerCall, twin: LayerCall | None, size: int, index: Sequence[int]) -> Layout | None:
    """Compare shapes and values."""
    if twin is None or len(use.shape) != len(twin.shape) or not _same_sources(use, twin):
        return None
    changed = [i for i, (a, b) in enumerate(zip(use.shape, twin.shape, strict=True)) if a != b]
    if len(changed) != 1 or changed[0] >= use.rule.free_axes(use.arguments, len(use.shape)):
        return None
    (axis,) = changed
    long, short = use.shape[axis], twin.shape[axis]
    if long * len(index) != short * size or long % size:
        return None
    orders = ("alone",) if long == size else ("samples first", "positions first")
    fitting = [layout for order in orders if _same_rows(use, twin, layout := Layout(axis, size, order), index)]
    return _if_applies(use, fitting[0]) if len(fitting) == 1 else None


def _if_applies(use: LayerCall, layout: Layout) -> Layout | None:
    use.layout = layout
    return layout if use.rule.applies(use.located()) else None


def _same_sources(use: LayerCall, twin: LayerCall) -> bool:
    """Tell whether what enters instead of parameters is the same for both batches, as it should."""
    return all(
        t.shape == twin.sources[role].shape and (t.is_leaf or torch.equal(t, twin.sources[role]))
        for role, t in use.sources.items()
    )


def _same_rows(use: LayerCall, twin: LayerCall, layout: Layout, index: Sequence[int]) -> bool:
    assert use.seen is not None, "located once"  # noqa: S101 - for mypy
    assert twin.seen is not None  # noqa: S101
    there = Layout(layout.axis, len(index), layout.order)
    return close(layout.first(use.seen), there.first(twin.seen), index)


def close(all_rows: Tensor, rows: Tensor, index: Sequence[int]) -> bool:
    """Tell whether ``rows`` are those at ``index``, up to what another batch size does to rounding.

    Each column is judged on its own scale, as masked units may hold large constants; one that is
    far smaller than most, and so nothing but rounding, on that of the others.
    """
    if all_rows.shape[1:] != rows.shape[1:]:
        return False
    if not all_rows.is_floating_point():
        return torch.equal(all_rows[list(index)], rows)
    scale = all_rows.abs().amax(0).float()
    usual = scale[scale > 0].median() if bool((scale > 0).any()) else scale.new_zeros(())
    tolerance = min(10 * torch.finfo(rows.dtype).eps ** 0.5, 0.05) * torch.maximum(scale, 0.01 * usual)
    # what is not finite passes: that is another complaint
    return not bool(((all_rows[list(index)] - rows).abs() > tolerance).any())


def _checkpointed() -> bool:
    """Tell whether what autograd saves goes through hooks: a checkpoint computes it again, as torch has it."""
    try:
        with disable_saved_tensors_hooks("hooks are active"):
            return False
    except RuntimeError:
        return True


def _any_complex(args: Any) -> bool:
    return any(isinstance(arg, Tensor) and arg.is_complex() for arg in args)


def _transformed(tensor: Any) -> bool:
    """Tell whether a tensor lives inside a transform of the model's own, such as vmap: no place for aliases."""
    return isinstance(tensor, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(tensor)
