"""Functions rewritten in simpler ones that have closed forms: attention, recurrent layers, padding.

Each returns the output of the torch function, up to rounding, or NotImplemented.
"""

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Cell = Callable[[Tensor, list[Tensor], Sequence[Tensor], Tensor | None], list[Tensor]]


def _without_dispatch(function: Any) -> Any:
    """Return a copy of a Python function of torch that lets active torch function modes see the calls within it.

    The original passes itself, as one call, to the active modes; the copy does not.
    """
    copied_globals = dict(function.__globals__)
    for name in copied_globals:
        if name.startswith("has_torch_function"):
            copied_globals[name] = lambda *_: False
    copy = types.FunctionType(function.__code__, copied_globals, function.__name__)
    copy.__defaults__ = function.__defaults__
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _lstm_cell(x: Tensor, state: list[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    """Return the state after one step.

    Args:
        x: the input's contribution to the gates.
        state: hidden and cell state.
        weights: of the hidden state, and of the projection if there is one.
        bias: of the hidden state.
    """
    h, c = state
    gates = x + F.linear(h, weights[0], bias)
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    if len(weights) > 1:
        h = F.linear(h, weights[1])
    return [h, c]


def _gru_cell(x: Tensor, state: list[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, weights[0], bias).chunk(3, -1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return [n + (x_z + h_z).sigmoid() * (h - n)]


def _elman_cell(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(x: Tensor, state: list[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
        return [activation(x + F.linear(state[0], weights[0], bias))]

    return cell


def _layers(cell: Cell) -> Callable[..., Any]:
    """Return a recurrent layer of such cells, with the arguments of ``torch.lstm``, ``torch.gru``, ..."""

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
        directions = 1 + bidirectional
        params_per_direction = len(params) // (num_layers * directions)
        final_states = []
        if batch_first:
            x = x.transpose(0, 1)
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                i = layer * directions + direction
                own_params = params[i * params_per_direction : (i + 1) * params_per_direction]
                own_state = [part[i] for part in states]
                backwards = direction == 1
                output, final_state = _steps(cell, x, own_state, own_params, has_biases, backwards)
                outputs.append(output)
                final_states.append(final_state)
            x = torch.cat(outputs, -1)
        if batch_first:
            x = x.transpose(0, 1)
        return (x, *_stacked(final_states))

    return run


def _stacked(states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return each part of the states, stacked over layers and directions."""
    return [torch.stack(parts) for parts in zip(*states, strict=True)]


def _steps(
    cell: Cell,
    x: Tensor,
    state: list[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    backwards: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Run a cell along the first axis; return all outputs and the last state.

    Args:
        params: w_ih, w_hh, with biases b_ih and b_hh, and the weight of the projection if there is one.
    """
    w_ih, w_hh, *rest = params
    b_ih, b_hh = rest[:2] if has_biases else (None, None)
    projection = rest[2:] if has_biases else rest
    weights = [w_hh, *projection]
    inputs = F.linear(x, w_ih, b_ih).unbind()
    outputs = []
    for step in reversed(inputs) if backwards else inputs:
        state = cell(step, state, weights, b_hh)
        outputs.append(state[0])
    if backwards:
        outputs.reverse()
    return torch.stack(outputs), state


def _single(cell: Cell) -> Callable[..., Any]:
    """Return one step of such a cell, with the arguments of ``torch.lstm_cell``, ``torch.gru_cell``, ..."""

    def run(
        x: Tensor,
        state: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        has_one_state = isinstance(state, Tensor)
        states = [state] if has_one_state else list(state)
        new_states = cell(F.linear(x, w_ih, b_ih), states, [w_hh], b_hh)
        return new_states[0] if has_one_state else tuple(new_states)

    return run


def _padded(convolution: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return the convolution with padding="same" done by `F.pad`: the native weight gradient does not support it."""

    def run(
        input: Tensor,  # noqa: A002 - the name that callers may use
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Any:
        if padding != "same":
            return NotImplemented
        padded = F.pad(input, _same_padding(weight, dilation))
        return convolution(padded, weight, bias, stride, 0, dilation, groups)

    return run


def _same_padding(weight: Tensor, dilation: int | tuple[int, ...]) -> list[int]:
    """Return the padding of padding="same" as `F.pad` takes it: from the last axis to the first, both ends each."""
    kernel = weight.shape[2:]
    dilations = [dilation] if isinstance(dilation, int) else list(dilation)
    if len(dilations) == 1:
        dilations *= len(kernel)
    padding = []
    for step, size in reversed(list(zip(dilations, kernel, strict=True))):
        total = step * (size - 1)
        left = total // 2
        padding += [left, total - left]
    return padding


EXPANSIONS: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _without_dispatch(F.multi_head_attention_forward),
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
