"""Local MAS: importance from each layer's own output, in forward passes only (the Hebbian form)."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp
from torch.utils._pytree import tree_leaves

from mas.batches import Batch, Forward, batch_size
from mas.gradients import Pass, check_finite
from mas.recording import LayerCall, Recorder, leaves
from mas.state import preserving_state
from mas.summing import GradientCollector


def local_mas_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    forward: Forward | None = None,
    max_samples: int | None = None,
    max_bytes: int | None = None,
) -> dict[str, Tensor]:
    """Local MAS: Ω = 1/N Σ_n |∂‖y(x_n)‖² / ∂θ|, y a layer's own output, its input held constant.

    A layer is one call of a function with parameters (linear, convolution, normalisation, ...),
    and y what the activation function applied to it gives, or the call's own output where none is.
    No gradient passes from layer to layer, so that a forward pass is all it takes. For a linear
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
        return _LocalPass(model, "abs", forward, max_bytes).mean_over(batches, max_samples)


class _LocalRecorder(Recorder):
    """Note layers and the gradient of their own output's norm; cut the graph between them."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.gradients: list[Tensor] = []  # of ‖y‖², at the output of each use
        self.fresh: dict[int, tuple[Tensor, int, int]] = {}  # outputs by id: the tensor, its version, number of the use

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output, version, number = self.fresh.get(id(args[0]) if args else 0, (None, 0, 0))
        if func in ACTIVATIONS and output is not None and output._version == version:
            self.gradients[number] = _through(ACTIVATIONS[func], args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any, alias: dict[int, Tensor]) -> Tensor:
        for arg in (*args, *kwargs.values()):
            if id(arg) not in alias:
                self.refuse_other_uses(arg)
        with torch.no_grad():
            return func(*args, **kwargs)

    def _note(self, use: LayerCall, output: Tensor) -> None:
        self.fresh[id(output)] = output, output._version, len(self.uses)
        self.uses.append(use)
        self.gradients.append(2 * output)

    def refuse_other_uses(self, tensor: Any) -> None:
        """Raise if a parameter went into ``tensor`` by a way that is no layer."""
        if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
            names = sorted({self.names[id(leaf)] for leaf in leaves([tensor.grad_fn]) if id(leaf) in self.names})
            if names:
                raise ValueError(
                    f"local MAS knows no layer that uses {', '.join(names)}; "
                    "freeze these parameters, or use mas_importance"
                )


class _LocalPass(Pass):
    recorder = _LocalRecorder

    def _add(self, batch: Batch) -> None:
        """Add the moments of a batch: every layer has an objective of its own."""
        output, recorder = self._record(batch)
        assert isinstance(recorder, _LocalRecorder)  # noqa: S101 - for mypy
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                check_finite(leaf.detach().reshape(len(leaf) if leaf.ndim else 1, -1))
            recorder.refuse_other_uses(leaf)
        if not recorder.uses:
            raise ValueError(
                "the forward pass calls no layer with a parameter that requires a gradient; is it run under no_grad?"
            )
        collector = GradientCollector(self.sums, recorder.uses)
        for use, gradient in zip(recorder.uses, recorder.gradients, strict=True):
            collector.add(use, gradient)
        collector.finish()
        self.count += batch_size(batch)


def _through(activation: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Give ∂‖φ(z)‖²/∂z = 2 φ(z) φ'(z), elementwise, by forward differentiation."""
    z, rest = args[0].detach(), args[1:]
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own way to do it
        # a copy: "in place" may be an argument by position
        found = jvp(lambda z: activation(z, *rest, **kwargs), (z.clone(),), (torch.ones_like(z),))
    return 2 * found[0] * found[1]  # value, slope


def _activations() -> dict[Any, Callable[..., Tensor]]:
    """List elementwise activation functions, in place or not -> the same, not in place."""
    found: dict[Any, Callable[..., Tensor]] = {}
    names = "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh sigmoid logsigmoid hardtanh"
    for name in f"{names} hardswish hardsigmoid hardshrink softshrink tanhshrink threshold".split():
        plain = next(getattr(place, name) for place in (torch, F) if hasattr(place, name))
        for place in (torch, F, Tensor):
            for spelling in (name, name + "_"):
                if hasattr(place, spelling):
                    found[getattr(place, spelling)] = plain
    return found


ACTIVATIONS = _activations()
