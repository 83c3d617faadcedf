"""Functions written out in simpler ones, which have closed forms: attention, recurrent layers, padding.

Each gives what the function of torch gives, up to rounding, or NotImplemented.
"""

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Cell = Callable[[Tensor, list[Tensor], Sequence[Tensor], Tensor | None], list[Tensor]]


def open_dataset(function: Any) -> Any:
    """Copy a Python function of torch so that calls within it are seen by torch function modes.

    Such a function first offers itself, whole, to the modes that are active; the copy does not.
    """
    never = {name: lambda *_: False for name in function.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(function.__code__, function.__globals__ | never, function.__name__)
    copy.__defaults__, copy.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return copy


def _lstm_cell(x: Tensor, state: list[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    """Do one step; x is the input's share of the gates. weights: hidden, and projection if there is one."""
    i, f, g, o = (x + F.linear(state[0], weights[0], bias)).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return [F.linear(h, weights[1]) if len(weights) > 1 else h, c]


def _gru_cell(x: Tensor, state: list[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, weights[0], bias).chunk(3, -1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return [n + (x_z + h_z).sigmoid() * (h - n)]


def _elman_cell(activation: Callable[[Tensor], Tensor]) -> Cell:
    return lambda x, state, weights, bias: [activation(x + F.linear(state[0], weights[0], bias))]


def _layers(cell: Cell) -> Callable[..., Any]:
    """Make a recurrent layer, with the arguments of ``torch.lstm`` and its kin, of a cell."""

    def run(
        x: Tensor,
        state: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool = False,
    ) -> Any:
        if not isinstance(has_biases, bool) or (train and dropout):  # packed sequences have other arguments
            return NotImplemented
        states = [state] if isinstance(state, Tensor) else list(state)
        directions, ends = 1 + bidirectional, []
        size = len(params) // (num_layers * directions)
        x = x.transpose(0, 1) if batch_first else x
        for layer in range(num_layers):
            found = []
            for i in range(layer * directions, (layer + 1) * directions):
                own = params[i * size : (i + 1) * size]
                found.append(_steps(cell, x, [s[i] for s in states], own, has_biases, backwards=bool(i % directions)))
                ends.append(found[-1][1])
            x = torch.cat([output for output, _ in found], -1)
        last = [torch.stack(parts) for parts in zip(*ends, strict=True)]
        return (x.transpose(0, 1) if batch_first else x, *last)

    return run


def _steps(
    cell: Cell, x: Tensor, state: list[Tensor], params: Sequence[Tensor], has_biases: bool, backwards: bool
) -> tuple[Tensor, list[Tensor]]:
    """Run a cell along the first axis; give all outputs and the last state."""
    weights = [params[1], *params[4 if has_biases else 2 :]]
    shares = F.linear(x, params[0], params[2] if has_biases else None).unbind()
    outputs = []
    for share in reversed(shares) if backwards else shares:
        state = cell(share, state, weights, params[3] if has_biases else None)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _single(cell: Cell) -> Callable[..., Any]:
    """Make one step, with the arguments of ``torch.lstm_cell`` and its kin, of a cell."""

    def run(
        x: Tensor, state: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        states = [state] if isinstance(state, Tensor) else list(state)
        found = cell(F.linear(x, w_ih, b_ih), states, [w_hh], b_hh)
        return found[0] if isinstance(state, Tensor) else tuple(found)

    return run


def _padded(convolution: Callable[..., Tensor]) -> Callable[..., Any]:
    """Write out padding="same" where it is not the same on both sides: no native weight gradient takes it."""

    def run(
        x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *more: Any, **named: Any
    ) -> Any:
        if padding != "same":
            return NotImplemented
        dilation = more[0] if more else named.get("dilation", 1)
        sides = weight.ndim - 2
        dilations = [dilation] * sides if isinstance(dilation, int) else list(dilation) * (sides // len(dilation))
        spans = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        ends = [end for span in reversed(spans) for end in (span // 2, span - span // 2)]
        return convolution(F.pad(x, ends), weight, bias, stride, 0, *more, **named)

    return run


EXPANSIONS: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: open_dataset(F.multi_head_attention_forward),
    **{convolution: _padded(convolution) for convolution in (F.conv1d, F.conv2d, F.conv3d)},
    torch.lstm: _layers(_lstm_cell),
    torch.gru: _layers(_gru_cell),
    torch.rnn_tanh: _layers(_elman_cell(torch.tanh)),
    torch.rnn_relu: _layers(_elman_cell(torch.relu)),
    torch.lstm_cell: _single(_lstm_cell),
    torch.gru_cell: _single(_gru_cell),
    torch.rnn_tanh_cell: _single(_elman_cell(torch.tanh)),
    torch.rnn_relu_cell: _single(_elman_cell(torch.relu)),
}
