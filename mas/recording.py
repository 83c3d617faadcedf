"""Record what a forward pass does with the parameters: its calls of layer functions, and the sample axis of each.

While the model runs, a `TorchFunctionMode` sees every function call. For a function with a closed
form (`mas.rules`) the parameters are replaced by detached aliases, and the input and the output's
node in the autograd graph are recorded. An argument may also be *derived* from parameters alone
instead of being one: a slice, a transpose, a normalised weight.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, disable_saved_tensors_hooks, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mas.rules import EXPANSIONS, RULES, Rule, refusal
from mas.rules.rule import Arguments, Part

Key = tuple[Hashable, ...]
Function = Callable[..., Any]
Order = Literal["alone", "samples first", "positions first"]

# functions that select rows by an index among their arguments
_INDEXING = {
    *(Tensor.__getitem__, Tensor.__setitem__, torch.index_select, Tensor.index_select, torch.gather, Tensor.gather),
    *(torch.take_along_dim, Tensor.take_along_dim, torch.index_add, Tensor.index_add, Tensor.index_add_),
    *(torch.index_copy, Tensor.index_copy, Tensor.index_copy_, torch.scatter, Tensor.scatter, Tensor.scatter_),
    *(torch.scatter_add, Tensor.scatter_add, Tensor.scatter_add_, torch.masked_select, Tensor.masked_select),
    *(torch.masked_scatter, Tensor.masked_scatter, Tensor.masked_scatter_, Tensor.index_put, Tensor.index_put_),
    *(torch.scatter_reduce, Tensor.scatter_reduce, Tensor.scatter_reduce_, torch.index_put, torch.index_put_),
    *(torch.repeat_interleave, Tensor.repeat_interleave),
}
# functions that select or sort rows by the values of the tensor itself
_SELECTING = {
    *(torch.sort, Tensor.sort, torch.topk, Tensor.topk, torch.nonzero, Tensor.nonzero, torch.unique, Tensor.unique),
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__index__),
}


@dataclass(frozen=True)
class Layout:
    """The axis of the samples, which they may share with positions.

    Attributes:
        axis: the axis.
        samples: their number.
        order: "alone", or for a shared axis "samples first" (index n T + t for sample n and
            position t of T) or "positions first" (index t N + n).
    """

    axis: int
    samples: int
    order: Order

    def first(self, tensor: Tensor) -> Tensor:
        """Return a view with the samples on axis 0; positions that shared their axis move to axis + 1."""
        if self.order == "samples first":
            return tensor.unflatten(self.axis, (self.samples, -1)).movedim(self.axis, 0)
        if self.order == "positions first":
            return tensor.unflatten(self.axis, (-1, self.samples)).movedim(self.axis + 1, 0)
        return tensor.movedim(self.axis, 0)


@dataclass(eq=False)
class LayerCall:
    """One call of a layer function with parameters of the model.

    Attributes:
        rule: the function's closed forms.
        key: identifies the call within one forward pass.
        sources: "weight" or "bias" -> a parameter, or a tensor derived from parameters.
        names: "weight" or "bias" -> the names of those parameters.
        arguments: the function's arguments by name.
        observed: the input or output, whichever shows the sample axis; None once that is located.
        shape: the shape of ``observed``.
        version: of the input; it changes when the input is overwritten.
        aliases: "weight" or "bias" -> the tensor that replaced the source in the call.
        inputs: the nodes in the autograd graph of all other arguments.
        layout: the location of the samples in ``observed``; None if unknown.
        edge: the output in the autograd graph.
        output_shape: the shape of the output.
    """

    rule: Rule
    key: Key
    sources: dict[str, Tensor]
    names: dict[str, tuple[str, ...]]
    arguments: Arguments
    observed: Tensor | None
    shape: tuple[int, ...]
    version: int
    aliases: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[Node | None] = field(default_factory=list)
    layout: Layout | None = None
    edge: GradientEdge | None = None
    output_shape: tuple[int, ...] = ()

    @property
    def parameters(self) -> set[str]:
        """The names of all parameters in this call."""
        return {name for names in self.names.values() for name in names}

    @property
    def overwritten(self) -> bool:
        """Whether the input was overwritten in place after the call."""
        if not self.rule.needs_input:
            return False
        return self.arguments["input"]._version != self.version

    @property
    def folds(self) -> bool:
        """Whether moments for several output gradients are the moment for one, see `mas.rules.rule.Rule.folds`."""
        is_alone = self.layout is not None and self.layout.order == "alone"
        return is_alone and self.rule.folds(len(self.output_shape), self.arguments)

    def rule_arguments(self) -> Arguments:
        """Return the arguments for the rule, with the output's shape and sample axis if the rule uses them."""
        if self.rule.sample_axis_from == "input" or self.layout is None:
            return self.arguments
        return self.arguments | {"axis": self.layout.axis, "shape": self.shape}

    def per_sample(self, role: str, gradient: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the gradients of "weight" or "bias" for some samples, shape (n, *source)."""
        g, a = self.part(gradient, rows, dtype)
        if self.layout is None or self.layout.order == "alone" or self.rule.positions:
            return self.rule.per_sample(role, g, a)
        # the rule knows no positions: treat each as a sample of its own, then sum
        flat_input = a["input"].flatten(0, 1)
        per_position = self.rule.per_sample(role, g.flatten(0, 1), a | {"input": flat_input})
        return per_position.unflatten(0, g.shape[:2]).sum(1)

    def part(self, gradient: Tensor, rows: slice, dtype: torch.dtype) -> Part:
        """Return the output gradient and the arguments for some samples, with samples on axis 0."""
        assert self.layout is not None, "calls without a layout use the fallback"  # noqa: S101 - for mypy
        arguments = self.rule_arguments()
        if self.rule.needs_input:
            x = self.layout.first(arguments["input"].detach())[rows]
            if x.is_floating_point():
                x = x.to(dtype)
            arguments = arguments | {"input": x}
        g = self.layout.first(gradient)[rows].to(dtype)
        return g, arguments


class Recorder(TorchFunctionMode):
    """Record every call of a function that has a rule with parameters of the model.

    Args:
        params: the parameters to look for, by name.
        model: the model, whose modules are named in error messages.
        skip: keys of calls that are not to be recorded.
    """

    def __init__(self, params: dict[str, nn.Parameter], model: nn.Module, skip: set[Key]):
        super().__init__()
        self.names = {id(p): name for name, p in params.items()}
        self.model = model
        self.skip = skip
        self.calls: list[LayerCall] = []
        self.call_counts: Counter[Key] = Counter()
        self.picks_rows = False  # whether the model selects or sorts by the values of its tensors
        self.buffers = {id(b) for b in model.buffers()}

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Arguments | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and func in EXPANSIONS and not _saved_tensors_hooks_are_active():
            with self:
                output = EXPANSIONS[func](*args, **kwargs)
            if output is not NotImplemented:
                return output
        if not self.picks_rows:
            self.picks_rows = self._picks_rows(func, args)
        rule = RULES.get(func)
        if rule is None or not torch.is_grad_enabled() or _any_complex(args):
            return func(*args, **kwargs)
        arguments = rule.bind(args, kwargs)
        if reason := refusal(func, arguments):
            raise ValueError(f"{self._owner(arguments)}: {reason}")
        return self._call(func, rule, args, kwargs, arguments)

    def _call(
        self,
        func: Function,
        rule: Rule,
        args: tuple[Any, ...],
        kwargs: Arguments,
        arguments: Arguments,
    ) -> Any:
        """Call a function that has a rule; record the call if a parameter goes into it."""
        names = self._parameter_names(arguments)
        if rule.commutes and not names and self._parameters_behind(arguments.get("input")):
            arguments["input"], arguments["weight"] = arguments["weight"], arguments["input"]
            names = self._parameter_names(arguments)
        x = arguments.get("input")
        if not names or _in_transform(x):
            return func(*args, **kwargs)
        key = self._key(func, names)
        if key in self.skip:
            return func(*args, **kwargs)

        sources: dict[str, Tensor] = {role: arguments[role] for role in names}
        aliases = {role: source.detach().requires_grad_() for role, source in sources.items()}
        replacements = {id(source): aliases[role] for role, source in sources.items()}
        others = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and id(t) not in replacements]
        inputs = [tensor.grad_fn for tensor in others]
        output = self._run(func, args, kwargs, replacements)
        observed: Any = x if rule.sample_axis_from == "input" else output
        if not rule.needs_input:
            arguments = {role: value for role, value in arguments.items() if role != "input"}
        call = LayerCall(
            rule=rule,
            key=key,
            sources=sources,
            names=names,
            arguments=arguments,
            observed=observed.detach(),
            shape=tuple(observed.shape),
            version=x._version if isinstance(x, Tensor) else 0,
            aliases=aliases,
            inputs=inputs,
        )
        self._add(call, output)
        return output

    def _run(
        self,
        func: Function,
        args: tuple[Any, ...],
        kwargs: Arguments,
        replacements: dict[int, Tensor],
    ) -> Tensor:
        """Call with the aliases in place of the sources, so that the graph does not lead to the parameters."""
        new_args = [replacements.get(id(arg), arg) for arg in args]
        new_kwargs = {name: replacements.get(id(arg), arg) for name, arg in kwargs.items()}
        return func(*new_args, **new_kwargs)

    def _add(self, call: LayerCall, output: Tensor) -> None:
        call.edge = get_gradient_edge(output)
        call.output_shape = tuple(output.shape)
        self.calls.append(call)

    def _picks_rows(self, func: Function, args: tuple[Any, ...]) -> bool:
        """Return whether a call selects by the values of a tensor other than a buffer, such as a fixed table."""
        if func in _INDEXING:
            index = tree_leaves(args[1:])
        elif func in _SELECTING:
            index = tree_leaves(args)
        else:
            return False
        return any(isinstance(t, Tensor) and id(t) not in self.buffers for t in index)

    def _key(self, func: Function, names: dict[str, tuple[str, ...]]) -> Key:
        """Return the function, its parameters and the number of such calls so far."""
        call = (func, *names.items())
        self.call_counts[call] += 1
        return (*call, self.call_counts[call])

    def _parameter_names(self, arguments: Arguments) -> dict[str, tuple[str, ...]]:
        """Return the names of the parameters behind "weight" and "bias", where there are any."""
        found = {}
        for role in ("weight", "bias"):
            names = self._parameters_behind(arguments.get(role))
            if names:
                found[role] = names
        return found

    def _parameters_behind(self, tensor: Any) -> tuple[str, ...]:
        """Return the name of the parameter that a tensor is, or of those it is derived from; () if it is neither."""
        if not isinstance(tensor, Tensor) or not tensor.requires_grad or _in_transform(tensor):
            return ()
        if id(tensor) in self.names:
            return (self.names[id(tensor)],)
        found = set()
        for leaf in leaves([tensor.grad_fn]):
            if id(leaf) not in self.names:
                return ()
            found.add(self.names[id(leaf)])
        return tuple(sorted(found))

    def _owner(self, arguments: Arguments) -> str:
        """Return a description of the module that the call belongs to, by its tensors."""
        tensors = {id(value) for value in arguments.values() if isinstance(value, Tensor)}
        for name, module in self.model.named_modules():
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if any(id(tensor) in tensors for tensor in own):
                return f"module '{name}' ({type(module).__name__})"
        return self._modules_without_statistics() or "the model"

    def _modules_without_statistics(self) -> str:
        """Return the modules that normalise by batch statistics, the last one of each type; "" if there are none."""
        last_of_type = {}
        for name, module in self.model.named_modules():
            if getattr(module, "track_running_stats", None) is False:
                last_of_type[type(module).__name__] = name
        listed = ", ".join(f"'{name}' ({kind})" for kind, name in last_of_type.items())
        return f"module {listed}" if listed else ""


def leaves(nodes: Iterable[Node | None], cut: Set[Node] = frozenset()) -> Iterator[Tensor | None]:
    """Yield the leaf tensors that an autograd graph leads to, except through the nodes in ``cut``.

    A leaf node without a tensor of its own yields None.

    Raises:
        ValueError: the graph holds a reentrant checkpoint, which hides its parameters.
    """
    stack = list(nodes)
    visited = set(cut)
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node.name() == "CheckpointFunctionBackward":  # its parameters are not in the graph at all
            raise ValueError(
                "a reentrant checkpoint hides its parameters from autograd; call checkpoint with use_reentrant=False"
            )
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)


def locate(
    calls: Sequence[LayerCall], probed: Sequence[LayerCall], size: int, index: Sequence[int]
) -> list[Layout | None]:
    """Return the layout of each call, or None if it has none.

    Args:
        calls: of a batch of ``size`` samples.
        probed: the calls of the same model on the samples at ``index`` alone.
        size: of the batch.
        index: whose length differs from ``size``.
    """
    probed_by_key = {call.key: call for call in probed}
    return [_layout(call, probed_by_key.get(call.key), size, index) for call in calls]


def _layout(call: LayerCall, probed: LayerCall | None, size: int, index: Sequence[int]) -> Layout | None:
    """Find the layout of a call by its shape and values in the two batches."""
    if probed is None or len(call.shape) != len(probed.shape) or not _same_sources(call, probed):
        return None
    lengths = list(zip(call.shape, probed.shape, strict=True))
    changed = [axis for axis, (full, part) in enumerate(lengths) if full != part]
    if len(changed) != 1:
        return None
    (axis,) = changed
    if axis >= call.rule.free_axes(call.arguments, len(call.shape)):
        return None
    full, part = lengths[axis]
    if full * len(index) != part * size or full % size:
        return None
    orders: tuple[Order, ...] = ("alone",) if full == size else ("samples first", "positions first")
    candidates = [Layout(axis, size, order) for order in orders]
    fitting = [layout for layout in candidates if _same_rows(call, probed, layout, index)]
    if len(fitting) != 1:
        return None
    call.layout = fitting[0]
    return call.layout if call.rule.applies(call.rule_arguments()) else None


def _same_sources(call: LayerCall, probed: LayerCall) -> bool:
    """Return whether weight and bias are the same for both batches, as they should be."""
    for role, source in call.sources.items():
        other = probed.sources[role]
        if source.shape != other.shape:
            return False
        if not source.is_leaf and not torch.equal(source, other):
            return False
    return True


def _same_rows(call: LayerCall, probed: LayerCall, layout: Layout, index: Sequence[int]) -> bool:
    """Return whether the samples at ``index`` have the same values in both batches, given a layout."""
    assert call.observed is not None, "calls are located once"  # noqa: S101 - for mypy
    assert probed.observed is not None  # noqa: S101
    probed_layout = Layout(layout.axis, len(index), layout.order)
    return close(layout.first(call.observed), probed_layout.first(probed.observed), index)


def close(all_rows: Tensor, rows: Tensor, index: Sequence[int]) -> bool:
    """Return whether ``rows`` are those at ``index``, up to rounding, which depends on the batch size.

    The tolerance is relative to each column's own scale, as masked units may hold large constants.
    For a column far smaller than most, which is nothing but rounding, it is relative to the median
    scale. Values that are not finite count as close: they are reported elsewhere.
    """
    if all_rows.shape[1:] != rows.shape[1:]:
        return False
    selected = all_rows[list(index)]
    if not all_rows.is_floating_point():
        return torch.equal(selected, rows)
    scale = all_rows.abs().amax(0).float()
    positive = scale[scale > 0]
    median = positive.median() if len(positive) else scale.new_zeros(())
    relative = min(10 * torch.finfo(rows.dtype).eps ** 0.5, 0.05)
    tolerance = relative * torch.maximum(scale, 0.01 * median)
    differs = (selected - rows).abs() > tolerance
    return not bool(differs.any())


def _saved_tensors_hooks_are_active() -> bool:
    """Return whether autograd's saved tensors go through hooks, as in a checkpoint, which runs the function again."""
    try:
        with disable_saved_tensors_hooks("hooks are active"):
            return False
    except RuntimeError:
        return True


def _any_complex(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, Tensor) and arg.is_complex() for arg in args)


def _in_transform(tensor: Any) -> bool:
    """Return whether a tensor is inside a transform of the model's own, such as vmap, where aliases do not work."""
    return isinstance(tensor, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(tensor)
