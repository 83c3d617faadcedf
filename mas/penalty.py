"""Quadratic penalty that keeps important weights near their anchor: its value and its fused gradient."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mas.gradients import DIVERGED
from mas.state import named_parameters

Accumulate = Literal["sum", "ema", "decay", "quadratics"]


class QuadraticPenalty:
    """The penalty strength × Σ_i Ω_i (θ_i − θ*_i)², consolidated across tasks.

    Before the first `consolidate` its value and gradient are 0.

    Args:
        strength: factor of the sum, finite and at least 0: λ for MAS, λ/2 for EWC.
        accumulate: how `consolidate` combines a task with the previous ones:

            "sum": Ω ← Ω + Ω_new, anchor = latest weights (MAS, Aljundi 2018, authors' code);
            "ema": Ω ← factor Ω + (1 − factor) Ω_new, anchor = latest (as in Avalanche). The first
            task's Ω has weight 1; FACIL's average starts from zeros, which is (1 − factor)
            times "decay";
            "decay": Ω ← factor Ω + Ω_new, anchor = latest (online EWC, Schwarz 2018);
            "quadratics": the exact sum of one quadratic per task (EWC, Kirkpatrick 2017), stored
            as one quadratic (total Ω, Ω-weighted mean anchor, a constant; Huszár 2018), so that
            memory and time do not grow with the number of tasks.
        factor: of "ema" and "decay", from 0 to 1.

    Raises:
        ValueError: an argument is out of range.

    Models may grow. Parameters without an anchor are not penalised. A parameter that has grown
    (new classes) is penalised in its old part. A task whose importance for a parameter is zero
    everywhere, such as for an old head that it does not use, leaves that parameter's importance
    unchanged.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> penalty = QuadraticPenalty(strength=0.5)
    >>> penalty.consolidate({"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[4.0]])})
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> penalty.value(model).item()  # 0.5 * 4 * (3 - 1)²
    8.0
    """

    def __init__(self, strength: float = 1.0, accumulate: Accumulate = "sum", factor: float = 0.5):
        _check_settings(strength, accumulate, factor)
        self.strength = strength
        self.accumulate = accumulate
        self.factor = factor
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant = 0.0  # of "quadratics": the sum of the tasks' penalties at the common anchor

    def consolidate(self, anchor: Mapping[str, Tensor] | nn.Module, importance: Mapping[str, Tensor]) -> None:
        """Add a finished task to the penalty: keep weights near ``anchor``, weighted by ``importance``.

        Anchor and importance are stored in one dtype, the widest of theirs and float32, so that the
        anchor has the exact values of the weights. Integer or boolean importance is converted. If an
        error is raised, the penalty is unchanged.

        Args:
            anchor: the weights to stay near: a mapping by name, or a model with these weights.
            importance: Ω or F by name, as `mas.mas_importance` returns it.

        Raises:
            ValueError: an importance without an anchor, of another shape, negative or complex; a
                parameter that has shrunk.
            FloatingPointError: an importance, an anchor or their sum over tasks is not finite.
        """
        weights = named_parameters(anchor) if isinstance(anchor, nn.Module) else anchor
        _check(weights, importance)
        combined: dict[str, _Quadratic] = {}
        with torch.no_grad():
            for name, omega in importance.items():
                combined[name] = self._combine(name, weights[name], omega)
        constant = self.constant
        for name, quadratic in combined.items():
            constant += quadratic.constant
            _check_finite(name, "the sum over tasks of the importance", quadratic.importance)
        _check_constant(constant)
        for name, quadratic in combined.items():
            self.importance[name] = quadratic.importance
            self.anchor[name] = quadratic.anchor
        self.constant = constant

    def value(self, model: nn.Module) -> Tensor:
        """Return the penalty at the model's weights, a scalar that autograd can differentiate."""
        params, anchors, omegas = self._aligned(model)
        total = torch.zeros(())
        for parameter, anchor, omega in zip(params, anchors, omegas, strict=True):
            weighted = omega * (parameter - anchor).square()
            total = total + weighted.sum()
        return self.strength * (total + self.constant)

    @torch.no_grad()
    def add_gradient_(self, model: nn.Module) -> Tensor:
        """Add the penalty's gradient, 2 strength Ω (θ − θ*), to ``.grad``, and return its value.

        No autograd graph is built. On an accelerator a few fused operations process all parameters;
        on a CPU each parameter is processed in pieces that fit into the cache. With strength 0
        nothing is changed, so that training is bit-identical to training without a penalty.

        Returns:
            The value, a scalar, the same as `value`.
        """
        if self.strength == 0 or not self.importance:
            return torch.zeros(())
        params, anchors, omegas = self._aligned(model, with_grad=True)
        grads = [p.grad for p in params if p.grad is not None]
        on_cpu = all(p.device.type == "cpu" for p in params)
        add = _add_piecewise if on_cpu else _add_fused
        weighted_squares = add(params, grads, anchors, omegas, 2 * self.strength)
        return self.strength * (weighted_squares + self.constant)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain data and tensors, which `torch.load` loads with weights_only."""
        return {
            "importance": {name: omega.clone() for name, omega in self.importance.items()},
            "anchor": {name: anchor.clone() for name, anchor in self.anchor.items()},
            "strength": self.strength,
            "accumulate": self.accumulate,
            "factor": self.factor,
            "constant": self.constant,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the whole state by one that `state_dict` returned. If an error is raised, nothing is replaced.

        Raises:
            ValueError: a key is missing, or a value is not valid for a penalty.
            FloatingPointError: an importance or an anchor is not finite.
        """
        _check_state(state)
        importance: dict[str, Tensor] = {}
        anchor: dict[str, Tensor] = {}
        for name, omega in state["importance"].items():
            weights = state["anchor"][name]
            dtype = _common_dtype(weights, omega)
            importance[name] = omega.detach().to(dtype, copy=True)
            anchor[name] = weights.detach().to(dtype, copy=True)
        self.importance = importance
        self.anchor = anchor
        self.strength = state["strength"]
        self.accumulate = state["accumulate"]
        self.factor = state["factor"]
        self.constant = state["constant"]

    def _combine(self, name: str, anchor: Tensor, omega: Tensor) -> "_Quadratic":
        """Return one parameter's quadratic of a task, combined with that of the previous tasks."""
        if name not in self.importance:
            dtype = _common_dtype(anchor, omega)
            return _Quadratic(omega.detach().to(dtype, copy=True), anchor.detach().to(dtype, copy=True))
        old_omega = self.importance[name]
        old_anchor = self.anchor[name]
        _check_growth(name, anchor, old_anchor)
        dtype = _common_dtype(anchor, omega, old_anchor, old_omega)
        new = _Quadratic(omega.detach().to(dtype), anchor.detach().to(dtype, copy=True))
        old = _Quadratic(
            importance=pad_to(old_omega.to(dtype), new.importance, 0.0),
            anchor=pad_to(old_anchor.to(dtype), new.anchor),
        )
        if self.accumulate == "quadratics":
            return _sum_of(old, new)
        if not bool(omega.any()):  # the task does not use the parameter
            return _Quadratic(old.importance, new.anchor)
        old_weight, new_weight = _WEIGHTS[self.accumulate](self.factor)
        return _Quadratic(old_weight * old.importance + new_weight * new.importance, new.anchor)

    def _aligned(self, model: nn.Module, *, with_grad: bool = False) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return parameters, anchors and importances in the same order, parameters cropped to their anchors."""
        own = named_parameters(model)
        absent = self.importance.keys() - own.keys()
        if absent:
            raise ValueError(
                f"the penalty protects {min(absent)!r}, which the model lacks; was the model renamed or wrapped since?"
            )
        params = []
        anchors = []
        omegas = []
        for name, omega in self.importance.items():
            if own[name].requires_grad:
                anchor = self.anchor[name]
                params.append(_crop(own[name], anchor, name, with_grad=with_grad))
                anchors.append(anchor)
                omegas.append(omega)
        return params, anchors, omegas


def pad_to(tensor: Tensor, like: Tensor, fill: float | None = None) -> Tensor:
    """Return ``tensor`` extended to the shape of ``like``: with ``fill``, or with the values of ``like``."""
    if tensor.shape == like.shape:
        return tensor
    padded = like.clone() if fill is None else torch.full_like(like, fill)
    padded[_window(tensor)] = tensor
    return padded


def _window(tensor: Tensor) -> tuple[slice, ...]:
    """Return the index that crops a larger tensor to the shape of this one."""
    return tuple(slice(0, length) for length in tensor.shape)


class _Quadratic(NamedTuple):
    """Σ Ω (θ − θ*)² + constant, of one parameter."""

    importance: Tensor
    anchor: Tensor
    constant: float = 0.0


def _sum_of(old: _Quadratic, new: _Quadratic) -> _Quadratic:
    """Return the sum of two quadratics, without their constants, as one quadratic."""
    total = old.importance + new.importance
    step = new.anchor - old.anchor
    fraction = torch.where(total > 0, new.importance / total, 1.0)  # entries without importance take the new anchor
    constant = (old.importance * fraction * step.square()).sum(dtype=torch.float64)
    # the mean as a step from the old anchor: exact where the new importance is 0
    mean = torch.where(fraction < 1, old.anchor + fraction * step, new.anchor)
    return _Quadratic(total, mean, float(constant))


def _common_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest of the tensors' dtypes and float32."""
    dtypes = [tensor.dtype for tensor in tensors]
    return reduce(torch.promote_types, dtypes, torch.float32)


_STATE = ("strength", "accumulate", "factor", "constant", "importance", "anchor")
_PIECE = 2**19  # numbers: 2 MiB of float32

# accumulate -> weights of the old and the new importance, given the factor
_WEIGHTS: dict[str, Callable[[float], tuple[float, float]]] = {
    "sum": lambda factor: (1.0, 1.0),
    "ema": lambda factor: (factor, 1.0 - factor),
    "decay": lambda factor: (factor, 1.0),
}


def _check(weights: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> None:
    for name, omega in importance.items():
        if name not in weights or weights[name].shape != omega.shape:
            got = tuple(weights[name].shape) if name in weights else "none"
            raise ValueError(
                f"importance of {name!r} has shape {tuple(omega.shape)} and its anchor {got}; "
                "measure importance on the model that is the anchor"
            )
        if omega.is_complex() or weights[name].is_complex():
            raise ValueError(f"{name!r} is complex; importance is defined for real parameters: leave it out")
        _check_finite(name, "importance", omega)
        _check_finite(name, "the anchor", weights[name])
        if not (omega >= 0).all():
            raise ValueError(f"importance of {name!r} has negative values; importance is at least 0")


def _check_finite(name: str, what: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise FloatingPointError(f"{what} of {name!r} has values that are not finite; {DIVERGED}")


def _check_settings(strength: object, accumulate: object, factor: object) -> None:
    if not _is_number(strength):
        raise ValueError(f"strength is {strength!r}; give a finite number of at least 0")
    known = get_args(Accumulate)
    if not isinstance(accumulate, str) or accumulate not in known:
        raise ValueError(f"accumulate is {accumulate!r}; known are {', '.join(map(repr, known))}")
    if not _is_number(factor, 1.0):
        raise ValueError(f"factor is {factor!r}; give a number from 0 to 1")


def _is_number(value: object, largest: float = sys.float_info.max) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= largest


def _check_constant(constant: float) -> None:
    if not constant < math.inf:
        raise FloatingPointError(f"the penalty of past tasks at their joint anchor is {constant}; {DIVERGED}")


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise ValueError or FloatingPointError unless `QuadraticPenalty.state_dict` can return ``state``."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of a penalty is of type {type(state).__name__}; give a dict")
    missing = set(_STATE) - state.keys()
    if missing:
        raise ValueError(
            f"the state of a penalty lacks {', '.join(sorted(missing))}; was it made by QuadraticPenalty.state_dict()?"
        )
    _check_settings(state["strength"], state["accumulate"], state["factor"])
    if not _is_number(state["constant"]):
        raise ValueError(f"constant is {state['constant']!r}; a penalty's is a finite number of at least 0")
    for key in ("importance", "anchor"):
        _check_tensors(key, state[key])
    importance = state["importance"]
    anchor = state["anchor"]
    unpaired = importance.keys() ^ anchor.keys()
    if unpaired:
        raise ValueError(f"{min(unpaired)!r} has an importance or an anchor only; a penalty's state has both")
    _check(anchor, importance)


def _check_tensors(key: str, tensors: object) -> None:
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{key} is of type {type(tensors).__name__}; a penalty's is a dict of tensors by name")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{key} holds {name!r} of type {type(tensor).__name__}; a penalty's is a dict of tensors by name"
            )


def _add_fused(
    params: list[Tensor], grads: list[Tensor], anchors: list[Tensor], omegas: list[Tensor], scale: float
) -> Tensor:
    """Add scale Ω (θ − θ*) to the gradients; return Σ Ω (θ − θ*)²."""
    buffers = torch._foreach_sub(params, anchors)  # θ − θ*
    torch._foreach_addcmul_(grads, buffers, omegas, value=scale)
    torch._foreach_mul_(buffers, buffers)  # its square
    torch._foreach_mul_(buffers, omegas)  # times Ω
    sums = [buffer.sum() for buffer in buffers]
    return torch.stack(sums).sum()


def _add_piecewise(
    params: list[Tensor], grads: list[Tensor], anchors: list[Tensor], omegas: list[Tensor], scale: float
) -> Tensor:
    """Do the same in pieces, all in one small buffer: allocating new memory would cost more than the sums."""
    buffers: dict[torch.dtype, Tensor] = {}
    sums = []
    for parameter, grad, anchor, omega in _pieces(params, grads, anchors, omegas):
        dtype = torch.promote_types(parameter.dtype, anchor.dtype)
        if dtype not in buffers:
            largest = max(p.numel() for p in params)
            buffers[dtype] = torch.empty(min(_PIECE, largest), dtype=dtype)
        buffer = buffers[dtype][: parameter.numel()].view(parameter.shape)
        difference = torch.sub(parameter, anchor, out=buffer)
        grad.addcmul_(difference, omega, value=scale)
        square = difference.square_().view(-1)
        sums.append(torch.dot(square, omega.reshape(-1).to(dtype)))
    return torch.stack(sums).sum() if sums else torch.zeros(())


def _pieces(*lists: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors at the same place of each list, in pieces of at most `_PIECE` numbers.

    Contiguous tensors are split as flat memory, others in halves along their longest axis.
    """
    for tensors in zip(*lists, strict=True):
        first = tensors[0]
        if first.numel() <= _PIECE:
            yield tensors
        elif all(tensor.is_contiguous() for tensor in tensors):
            flat_pieces = [tensor.view(-1).split(_PIECE) for tensor in tensors]
            yield from zip(*flat_pieces, strict=True)
        else:
            axis = max(range(first.ndim), key=lambda i: first.shape[i])
            halves = [list(tensor.tensor_split(2, axis)) for tensor in tensors]
            yield from _pieces(*halves)


def _crop(parameter: Tensor, anchor: Tensor, name: str, *, with_grad: bool) -> Tensor:
    """Return the part of a parameter that has an anchor, with the same part of its gradient."""
    _check_growth(name, parameter, anchor)
    if with_grad and parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if parameter.shape == anchor.shape:
        return parameter
    window = _window(anchor)
    part = parameter[window]
    if with_grad:
        part.grad = parameter.grad[window]  # type: ignore[index]
    return part


def _check_growth(name: str, parameter: Tensor, anchor: Tensor) -> None:
    lengths = zip(parameter.shape, anchor.shape, strict=False)
    if parameter.ndim != anchor.ndim or any(length < least for length, least in lengths):
        raise ValueError(
            f"parameter {name!r} has shape {tuple(parameter.shape)}, its anchor {tuple(anchor.shape)}; "
            "a parameter may grow, not shrink"
        )
