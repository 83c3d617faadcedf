"""Per-sample gradients without a closed form: `vmap(grad)`, or one backward pass per sample."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from mas.batches import Batch, Forward, chunks, has_sample_axis, select_samples

_VMAP_BYTES = 64 * 2**20  # the default limit: every chunk costs a whole pass, so chunks should be large


@dataclass(frozen=True)
class Fallback:
    """Moments of some parameters' per-sample gradients, by automatic differentiation alone.

    Attributes:
        model, objective, forward, moment, max_bytes: as for `mas.per_sample_moments`.
        params: the parameters, by the names used in the results.
    """

    model: nn.Module
    objective: Callable[[Any, Batch], Tensor]
    forward: Forward
    moment: str
    params: dict[str, nn.Parameter]
    max_bytes: int | None = None

    def moments(self, batch: Batch, size: int, columns: int) -> dict[str, Tensor]:
        """Return Σ_n |g_n| or Σ_n g_n² over ``size`` samples and all ``columns`` of the objective.

        Raises:
            RuntimeError: the model does not run on a batch of one.
        """
        try:
            total = self._zeros()
            for per_sample in self._by_vmap(batch, size, columns):
                for name, parameter_total in total.items():
                    gradients = per_sample[name].to(parameter_total.dtype)
                    accumulate(parameter_total, gradients, self.moment)
            return total
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # vmap does not support this model
            return self._by_loop(batch, size, columns)

    def _zeros(self) -> dict[str, Tensor]:
        return {name: zeros_for(p) for name, p in self.params.items()}

    def _by_vmap(self, batch: Batch, size: int, columns: int) -> Iterator[dict[str, Tensor]]:
        """Yield the gradients of a chunk of samples and one column at a time, each of shape (n, *parameter)."""
        leaves, spec = tree_flatten(batch)
        has_samples = [has_sample_axis(leaf, size) for leaf in leaves]
        wrapped = _ForwardModule(self.model, self.forward)
        wrapped_names = self._names_in(wrapped)

        def value(params: dict[str, Tensor], sample: list[Tensor], column: int) -> Tensor:
            sample_leaves = list(leaves)
            positions = [i for i, varies in enumerate(has_samples) if varies]
            for i, leaf in zip(positions, sample, strict=True):
                sample_leaves[i] = leaf[None]
            single = tree_unflatten(sample_leaves, spec)
            renamed = {wrapped_names[name]: p for name, p in params.items()}
            output = functional_call(wrapped, renamed, (single,))
            return self.objective(output, single).reshape(-1)[column]

        detached = {name: p.detach() for name, p in self.params.items()}
        parameter_bytes = sum(p.numel() * p.element_size() for p in detached.values())
        bytes_per_sample = 2 * parameter_bytes  # vmap holds about two copies
        gradients_of_samples = vmap(grad(value), in_dims=(None, 0, None))
        for rows in chunks(size, self.max_bytes or _VMAP_BYTES, bytes_per_sample):
            samples = [leaf[rows] for leaf, varies in zip(leaves, has_samples, strict=True) if varies]
            for column in range(columns):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    yield gradients_of_samples(detached, samples, column)

    def _names_in(self, wrapped: nn.Module) -> dict[str, str]:
        """Return the name of each parameter within the wrapping module."""
        names = {id(p): name for name, p in wrapped.named_parameters()}
        return {name: names[id(p)] for name, p in self.params.items()}

    def _by_loop(self, batch: Batch, size: int, columns: int) -> dict[str, Tensor]:
        """Return the moments by one backward pass per sample and column."""
        total = self._zeros()
        try:
            for n in range(size):
                self._add_sample(total, select_samples(batch, [n], size), columns)
        except RuntimeError as error:
            owners = sorted({name.rpartition(".")[0] or "the model" for name in self.params})
            raise RuntimeError(
                f"no exact per-sample gradient for module {', '.join(owners)}: {error}; "
                "freeze its parameters or make it run on a batch of one"
            ) from error
        return total

    def _add_sample(self, total: dict[str, Tensor], sample: Batch, columns: int) -> None:
        params = list(self.params.values())
        output = self.forward(self.model, sample)
        values = self.objective(output, sample).reshape(-1)
        if not values.requires_grad:  # a sample may use no parameter
            return
        for k in range(columns):
            is_last = k == columns - 1
            gradients = torch.autograd.grad(values[k], params, retain_graph=not is_last, allow_unused=True)
            for parameter_total, gradient in zip(total.values(), gradients, strict=True):
                if gradient is not None:
                    per_sample = gradient.to_dense()[None].to(parameter_total.dtype, copy=True)
                    accumulate(parameter_total, per_sample, self.moment)


class _ForwardModule(nn.Module):
    """The user's forward function as a module, so that `functional_call` can swap the model's parameters."""

    def __init__(self, model: nn.Module, run: Forward):
        super().__init__()
        self.training = model.training
        self.model = model
        self.run = run

    def forward(self, batch: Batch) -> Any:
        return self.run(self.model, batch)


def accumulate(total: Tensor, per_sample: Tensor, moment: str) -> None:
    """Add the moment of per-sample gradients to ``total``, in place.

    The gradients are overwritten: allocating new memory would cost more than the sums.

    Args:
        total: of the parameter's shape.
        per_sample: of shape (n, *parameter).
        moment: "abs" or "square".
    """
    powers = per_sample.abs_() if moment == "abs" else per_sample.square_()
    total.add_(powers[0] if len(powers) == 1 else powers.sum(0))


def zeros_for(parameter: Tensor) -> Tensor:
    """Return zeros of the parameter's shape to accumulate in, in its dtype, but at least float32."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False).detach()
