"""Local MAS: importance from each layer's own output, in forward passes only (the Hebbian form)."""

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp
from torch.utils._pytree import tree_leaves

from mas.batches import Batch, Forward, batch_size
from mas.gradients import Pass, check_finite
from mas.recording import Function, Key, LayerCall, Recorder, leaves
from mas.rules.rule import Arguments
from mas.state import preserving_state
from mas.summing import GradientCollector


def local_mas_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward | None = None,
    max_samples: int | None = None,
    max_bytes: int | None = None,
) -> dict[str, Tensor]:
    """Return local MAS importance: Ω = 1/N Σ_n |∂‖y(x_n)‖² / ∂θ|, y a layer's own output, its input held constant.

    A layer is one call of a function with parameters (linear, convolution, normalisation, ...).
    y is the output of the activation function applied to it, or the call's own output if there is
    none. No gradient passes from layer to layer, so a forward pass is sufficient. For a linear
    layer with ReLU it is Hebb's rule, Ω_ij = 1/N Σ_n 2 y_i x_j for inputs of one sign.

    Args:
        model, batches, forward, max_samples: as for `mas.mas_importance`.
        max_bytes: as for `mas.per_sample_moments`.

    Returns:
        Importance by parameter name, of the parameter's shape: a mean over samples, in units of
        (the layer's output)² per unit of weight.

    Raises:
        ValueError: a parameter is used in a way for which no layer function is known; no layer has
            a parameter that requires a gradient, or all run under ``torch.no_grad()``; or as
            `mas.per_sample_moments`.
        FloatingPointError: the model's output or an importance is not finite.

    Source: Aljundi et al. 2018, sec. 4.3 (local version, l-MAS).

    For y = relu(w x), w = 3, x = 1 and 2: 2 y x = 6 and 24:

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    >>> _ = nn.init.constant_(model[0].weight, 3.0)
    >>> local_mas_importance(model, [torch.tensor([[1.0], [2.0]])])
    {'0.weight': tensor([[15.]])}
    """
    with preserving_state(model):
        engine = _LocalPass(model, moment="abs", forward=forward, max_bytes=max_bytes)
        return engine.mean_over(batches, max_samples)


class _LocalRecorder(Recorder):
    """Record layer calls and the gradient of each output's norm; cut the graph between layers."""

    def __init__(self, params: dict[str, nn.Parameter], model: nn.Module, skip: set[Key]):
        super().__init__(params, model, skip)
        self.gradients: list[Tensor] = []  # of ‖y‖², at the output of each call
        self.outputs: dict[int, _Output] = {}  # by id

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Arguments | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in ACTIVATIONS and args:
            output = self.outputs.get(id(args[0]))
            if output is not None and output.tensor._version == output.version:
                self.gradients[output.call_number] = _through(ACTIVATIONS[func], args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def _run(
        self,
        func: Function,
        args: tuple[Any, ...],
        kwargs: Arguments,
        replacements: dict[int, Tensor],
    ) -> Tensor:
        for arg in (*args, *kwargs.values()):
            if id(arg) not in replacements:
                self.refuse_other_uses(arg)
        with torch.no_grad():
            return func(*args, **kwargs)

    def _add(self, call: LayerCall, output: Tensor) -> None:
        self.outputs[id(output)] = _Output(output, output._version, call_number=len(self.calls))
        self.calls.append(call)
        self.gradients.append(2 * output)

    def refuse_other_uses(self, tensor: Any) -> None:
        """Raise ValueError if ``tensor`` depends on a parameter by an operation that is not a recorded layer."""
        if not isinstance(tensor, Tensor) or tensor.grad_fn is None:
            return
        names = {self.names[id(leaf)] for leaf in leaves([tensor.grad_fn]) if id(leaf) in self.names}
        if names:
            raise ValueError(
                f"local MAS knows no layer that uses {', '.join(sorted(names))}; "
                "freeze these parameters, or use mas_importance"
            )


class _Output(NamedTuple):
    """The output of a recorded call."""

    tensor: Tensor  # kept, so that its id stays unique
    version: int  # of the tensor; it changes when the tensor is overwritten
    call_number: int


class _LocalPass(Pass):
    recorder = _LocalRecorder

    def _add(self, batch: Batch) -> None:
        """Add the moments of a batch; every layer has an objective of its own."""
        output, recorder = self._record(batch)
        assert isinstance(recorder, _LocalRecorder)  # noqa: S101 - for mypy
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                samples = len(leaf) if leaf.ndim else 1
                check_finite(leaf.detach().reshape(samples, -1))
            recorder.refuse_other_uses(leaf)
        if not recorder.calls:
            raise ValueError(
                "the forward pass calls no layer with a parameter that requires a gradient; is it run under no_grad?"
            )
        collector = GradientCollector(self.accumulator, recorder.calls)
        for call, gradient in zip(recorder.calls, recorder.gradients, strict=True):
            collector.add(call, gradient)
        collector.finish()
        self.count += batch_size(batch)


def _through(activation: Function, args: tuple[Any, ...], kwargs: Arguments) -> Tensor:
    """Return ∂‖φ(z)‖²/∂z = 2 φ(z) φ'(z), elementwise, by forward-mode differentiation.

    Args:
        activation: φ.
        args, kwargs: of the call; z is the first one.
    """
    z = args[0].detach()
    options = args[1:]
    named_options = {name: value for name, value in kwargs.items() if name != "inplace"}

    def function(z: Tensor) -> Tensor:
        return activation(z, *options, **named_options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised within torch itself
        copy = z.clone()  # "inplace" may be passed by position
        value_and_slope = jvp(function, (copy,), (torch.ones_like(z),))
    return 2 * value_and_slope[0] * value_and_slope[1]


_ELEMENTWISE = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh"),
    *("sigmoid", "logsigmoid", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink"),
    "threshold",
)


def _activations() -> dict[Function, Function]:
    """Return the elementwise activation functions, in place or not, each with its out-of-place form."""
    found: dict[Function, Function] = {}
    for name in _ELEMENTWISE:
        plain = getattr(torch, name, None) or getattr(F, name)
        for namespace in (torch, F, Tensor):
            for spelling in (name, name + "_"):
                if hasattr(namespace, spelling):
                    found[getattr(namespace, spelling)] = plain
    return found


ACTIVATIONS = _activations()
