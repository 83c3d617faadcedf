"""Keep important weights near their anchor: one quadratic, its value and its fused gradient."""

import sys
from collections.abc import Iterator, Mapping
from functools import reduce
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mas.gradients import DIVERGED
from mas.state import named_parameters

Accumulate = Literal["sum", "ema", "decay", "quadratics"]


class QuadraticPenalty:
    """strength × Σ_i Ω_i (θ_i − θ*_i)², kept across tasks.

    Before the first `consolidate` there is nothing to protect: value 0, no gradient.

    Args:
        strength: factor of the sum, finite and at least 0: λ for MAS, λ/2 for EWC.
        accumulate: how `consolidate` joins a task with those before it:

            "sum": Ω ← Ω + Ω_new, anchor = latest weights (MAS, Aljundi 2018, authors' code);
            "ema": Ω ← factor Ω + (1 − factor) Ω_new, anchor = latest (as Avalanche). The first
            task's Ω enters whole; FACIL's average starts from zeros, which is (1 − factor)
            times "decay";
            "decay": Ω ← factor Ω + Ω_new, anchor = latest (online EWC, Schwarz 2018);
            "quadratics": the exact sum of one quadratic per task (EWC, Kirkpatrick 2017), kept
            as one quadratic (total Ω, Ω-weighted mean anchor, a constant; Huszár 2018), so that
            memory and time do not grow with the number of tasks.
        factor: of "ema" and "decay", from 0 to 1.

    Growth is safe: parameters without an anchor are not penalised; a parameter that has grown
    since (new classes) is penalised where it was; and a task whose importance for a parameter is
    zero throughout, such as an old head that it does not use, leaves that parameter's as it was.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> penalty = QuadraticPenalty(strength=0.5)
    >>> penalty.consolidate({"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[4.0]])})
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> penalty.value(model).item()  # 0.5 * 4 * (3 - 1)²
    8.0
    """

    def __init__(self, strength: float = 1.0, accumulate: Accumulate = "sum", factor: float = 0.5):
        _check_settings(strength, accumulate, factor)
        self.strength, self.accumulate, self.factor = strength, accumulate, factor
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant = 0.0  # of the exact sum: what the tasks' anchors disagree about

    def consolidate(self, anchor: Mapping[str, Tensor] | nn.Module, importance: Mapping[str, Tensor]) -> None:
        """Join a finished task: protect ``anchor`` with ``importance`` from now on.

        Anchor and importance are kept in one dtype, the widest of theirs and float32, so that the
        anchor holds the weights' own values. An importance of whole numbers or booleans is
        converted. If an error is raised, the penalty is as before the call.

        Args:
            anchor: the weights to stay near: a mapping by name, or the model as it stands.
            importance: Ω or F by name, as `mas.mas_importance` gives it.

        Raises:
            ValueError: an importance without an anchor, of another shape, negative or complex; a
                parameter that has shrunk.
            FloatingPointError: an importance, an anchor or their sum over tasks is not finite.
        """
        weights = named_parameters(anchor) if isinstance(anchor, nn.Module) else anchor
        _check(weights, importance)
        with torch.no_grad():
            joined = {name: self._joined(name, weights[name], omega) for name, omega in importance.items()}
        constant = self.constant
        for name, task in joined.items():
            constant += task.constant
            _check_finite(name, "the sum over tasks of the importance", task.importance)
        _check_constant(constant)
        self.importance |= {name: task.importance for name, task in joined.items()}
        self.anchor |= {name: task.anchor for name, task in joined.items()}
        self.constant = constant

    def value(self, model: nn.Module) -> Tensor:
        """Give the penalty at the model's weights, a scalar that autograd can differentiate."""
        params, anchors, omegas = self._aligned(model)
        parts = [(w * (p - a).square()).sum() for p, a, w in zip(params, anchors, omegas, strict=True)]
        return self.strength * (sum(parts, torch.zeros(())) + self.constant)

    @torch.no_grad()
    def add_gradient_(self, model: nn.Module) -> Tensor:
        """Add the penalty's gradient, 2 strength Ω (θ − θ*), to ``.grad``, and give its value.

        No autograd graph is made. On an accelerator a few fused operations do for all parameters; on
        a CPU each is worked through in pieces that stay in the cache. With strength 0 nothing is
        touched, so that training is bit for bit the unpenalised one.

        Returns:
            The value, a scalar, the same as `value`.
        """
        if self.strength == 0 or not self.importance:
            return torch.zeros(())
        params, anchors, omegas = self._aligned(model, with_grad=True)
        grads = [p.grad for p in params if p.grad is not None]
        add = _add_fused if any(p.device.type != "cpu" for p in params) else _add_piecewise
        return self.strength * (add(params, grads, anchors, omegas, 2 * self.strength) + self.constant)

    def state_dict(self) -> dict[str, Any]:
        """Give all there is to keep, as plain data and tensors (`torch.load` with weights_only)."""
        copies = {key: {n: t.clone() for n, t in getattr(self, key).items()} for key in ("importance", "anchor")}
        return copies | {key: getattr(self, key) for key in _SETTINGS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything by what `state_dict` returned. If an error is raised, nothing is replaced.

        Raises:
            ValueError: a key is missing, or a value is not what a penalty can hold.
            FloatingPointError: an importance or an anchor is not finite.
        """
        _check_state(state)
        importance, anchor = state["importance"], state["anchor"]
        dtypes = {name: _common_dtype(anchor[name], omega) for name, omega in importance.items()}
        self.importance = {name: importance[name].detach().to(t, copy=True) for name, t in dtypes.items()}
        self.anchor = {name: anchor[name].detach().to(t, copy=True) for name, t in dtypes.items()}
        for key in _SETTINGS:
            setattr(self, key, state[key])

    def _joined(self, name: str, anchor: Tensor, omega: Tensor) -> "_Quadratic":
        """Return a task's quadratic of one parameter, joined to that of the tasks before."""
        if name not in self.importance:
            dtype = _common_dtype(anchor, omega)
            return _Quadratic(omega.detach().to(dtype, copy=True), anchor.detach().to(dtype, copy=True))
        _check_growth(name, anchor, self.anchor[name])
        dtype = _common_dtype(anchor, omega, self.anchor[name], self.importance[name])
        anchor, omega = anchor.detach().to(dtype, copy=True), omega.detach().to(dtype)
        was, stood = pad_to(self.importance[name].to(dtype), omega, 0.0), pad_to(self.anchor[name].to(dtype), anchor)
        if self.accumulate == "quadratics":
            return _collapsed(was, stood, omega, anchor)
        old, new = _WEIGHTS[self.accumulate](self.factor)
        used = bool(omega.any())
        return _Quadratic(old * was + new * omega if used else was, anchor)

    def _aligned(self, model: nn.Module, with_grad: bool = False) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Give parameters, anchors and importances in one order, parameters cut to their anchors."""
        own = named_parameters(model)
        absent = self.importance.keys() - own.keys()
        if absent:
            raise ValueError(
                f"the penalty protects {min(absent)!r}, which the model lacks; was the model renamed or wrapped since?"
            )
        names = [name for name in self.importance if own[name].requires_grad]
        params = [_cut(own[name], self.anchor[name], name, with_grad) for name in names]
        return params, [self.anchor[n] for n in names], [self.importance[n] for n in names]


def pad_to(tensor: Tensor, like: Tensor, fill: float | None = None) -> Tensor:
    """Extend ``tensor`` to the shape of ``like``: with ``fill``, or with the values of ``like``."""
    if tensor.shape == like.shape:
        return tensor
    grown = like.clone() if fill is None else torch.full_like(like, fill)
    grown[tuple(slice(0, n) for n in tensor.shape)] = tensor
    return grown


class _Quadratic(NamedTuple):
    """Σ Ω (θ − θ*)² + constant, of one parameter."""

    importance: Tensor
    anchor: Tensor
    constant: float = 0.0


def _collapsed(was: Tensor, stood: Tensor, omega: Tensor, anchor: Tensor) -> _Quadratic:
    """Return the sum of Σ was (θ − stood)² and Σ omega (θ − anchor)² as one quadratic."""
    total = was + omega
    share = torch.where(total > 0, omega / total, 1.0)  # entries that nothing holds take the new anchor
    constant = float((was * share * (anchor - stood).square()).sum(dtype=torch.float64))
    # the mean as a step from the old anchor: exact where the new importance is 0
    mean = torch.where(share < 1, stood + share * (anchor - stood), anchor)
    return _Quadratic(total, mean, constant)


def _common_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest of the tensors' dtypes and float32."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


_SETTINGS = ("strength", "accumulate", "factor", "constant")
_PIECE = 2**19  # numbers: 2 MiB of float32

# accumulate -> weights of the old and the new importance
_WEIGHTS = {
    "sum": lambda factor: (1.0, 1.0),
    "ema": lambda factor: (factor, 1.0 - factor),
    "decay": lambda factor: (factor, 1.0),
    "quadratics": lambda factor: (1.0, 1.0),
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


def _check_settings(strength: Any, accumulate: Any, factor: Any) -> None:
    if not _is_number(strength):
        raise ValueError(f"strength is {strength!r}; give a finite number of at least 0")
    if not isinstance(accumulate, str) or accumulate not in _WEIGHTS:
        raise ValueError(f"accumulate is {accumulate!r}; known are {', '.join(map(repr, _WEIGHTS))}")
    if not _is_number(factor, 1.0):
        raise ValueError(f"factor is {factor!r}; give a number from 0 to 1")


def _is_number(value: Any, most: float = sys.float_info.max) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= most


def _check_constant(constant: float) -> None:
    if not constant < float("inf"):
        raise FloatingPointError(f"the penalty of past tasks at their joint anchor is {constant}; {DIVERGED}")


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise unless ``state`` is what `QuadraticPenalty.state_dict` can return."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of a penalty is of type {type(state).__name__}; give a dict")
    missing = {*_SETTINGS, "importance", "anchor"} - state.keys()
    if missing:
        raise ValueError(
            f"the state of a penalty lacks {', '.join(sorted(missing))}; was it made by QuadraticPenalty.state_dict()?"
        )
    _check_settings(state["strength"], state["accumulate"], state["factor"])
    if not _is_number(state["constant"]):
        raise ValueError(f"constant is {state['constant']!r}; a penalty's is a finite number of at least 0")
    for key in ("importance", "anchor"):
        _check_tensors(key, state[key])
    importance, anchor = state["importance"], state["anchor"]
    if lone := importance.keys() ^ anchor.keys():
        raise ValueError(f"{min(lone)!r} has an importance or an anchor only; a penalty's state has both")
    _check(anchor, importance)


def _check_tensors(key: str, tensors: Any) -> None:
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
    """Add scale Ω (θ − θ*) to the gradients; give Σ Ω (θ − θ*)²."""
    pulls = torch._foreach_sub(params, anchors)
    torch._foreach_addcmul_(grads, pulls, omegas, value=scale)
    torch._foreach_mul_(pulls, pulls)
    torch._foreach_mul_(pulls, omegas)
    return torch.stack([weighted.sum() for weighted in pulls]).sum()


def _add_piecewise(
    params: list[Tensor], grads: list[Tensor], anchors: list[Tensor], omegas: list[Tensor], scale: float
) -> Tensor:
    """Do the same in pieces, all in the same little memory: fresh memory would cost more than the sums."""
    scratch: dict[torch.dtype, Tensor] = {}
    sums = []
    for p, grad, anchor, omega in _pieces(params, grads, anchors, omegas):
        dtype = torch.promote_types(p.dtype, anchor.dtype)
        if dtype not in scratch:
            scratch[dtype] = torch.empty(min(_PIECE, max(t.numel() for t in params)), dtype=dtype)
        pull = torch.sub(p, anchor, out=scratch[dtype][: p.numel()].view(p.shape))
        grad.addcmul_(pull, omega, value=scale)
        sums.append(torch.dot(pull.square_().view(-1), omega.reshape(-1).to(dtype)))
    return torch.stack(sums).sum() if sums else torch.zeros(())


def _pieces(*lists: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into flat pieces; those that are no flat memory are cut along their axes."""
    for whole in zip(*lists, strict=True):
        if whole[0].numel() <= _PIECE:
            yield whole
        elif all(t.is_contiguous() for t in whole):
            yield from zip(*(t.view(-1).split(_PIECE) for t in whole), strict=True)
        else:
            axis = max(range(whole[0].ndim), key=lambda i: whole[0].shape[i])
            halves = zip(*(t.tensor_split(2, axis) for t in whole), strict=True)
            yield from _pieces(*(list(column) for column in zip(*halves, strict=True)))


def _cut(parameter: Tensor, anchor: Tensor, name: str, with_grad: bool) -> Tensor:
    """Give the part of a parameter that has an anchor, with the same part of its gradient."""
    _check_growth(name, parameter, anchor)
    if with_grad and parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if parameter.shape == anchor.shape:
        return parameter
    window = tuple(slice(0, n) for n in anchor.shape)
    part = parameter[window]
    if with_grad:
        part.grad = parameter.grad[window]  # type: ignore[index]
    return part


def _check_growth(name: str, parameter: Tensor, anchor: Tensor) -> None:
    if parameter.ndim != anchor.ndim or any(n < m for n, m in zip(parameter.shape, anchor.shape, strict=True)):
        raise ValueError(
            f"parameter {name!r} has shape {tuple(parameter.shape)}, its anchor {tuple(anchor.shape)}; "
            "a parameter may grow, not shrink"
        )
