"""The slow roads to per-sample gradients, for what has no closed form: `vmap(grad)`, or a loop over samples."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from mas.batches import Batch, Forward, chunks, has_samples, samples

_VMAP_BYTES = 64 * 2**20  # at least this, as every chunk costs a whole pass


@dataclass(frozen=True)
class Fallback:
    """Moments of some parameters' per-sample gradients, by automatic differentiation alone.

    Attributes:
        model, objective, forward, moment, max_bytes: as for `mas.per_sample_moments`.
        params: by the names that results are given under.
    """

    model: nn.Module
    objective: Callable[[Any, Batch], Tensor]
    forward: Forward
    moment: str
    params: dict[str, nn.Parameter]
    max_bytes: int | None = None

    def moments(self, batch: Batch, size: int, columns: int) -> dict[str, Tensor]:
        """Give Σ_n |g_n| or Σ_n g_n² over ``size`` samples and all ``columns`` of the objective.

        Raises:
            RuntimeError: the model does not run on a batch of one.
        """
        try:
            total = {name: zeros_for(p) for name, p in self.params.items()}
            for per_sample in self._by_vmap(batch, size, columns):
                for name, own in total.items():
                    accumulate(own, per_sample[name].to(own.dtype), self.moment)
            return total
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # vmap cannot see through this model
            return self._by_loop(batch, size, columns)

    def _by_vmap(self, batch: Batch, size: int, columns: int) -> Iterator[dict[str, Tensor]]:
        tensors, spec = tree_flatten(batch)
        counted = [has_samples(leaf, size) for leaf in tensors]
        params = {f"model.{name}": p for name, p in self.model.named_parameters()}
        inside = {name: next(key for key, own in params.items() if own is p) for name, p in self.params.items()}
        wrapped = _Forward(self.model, self.forward)

        def value(given: dict[str, Tensor], sample: list[Tensor], k: int) -> Tensor:
            parts = iter(sample)
            one = tree_unflatten(
                [next(parts)[None] if c else leaf for c, leaf in zip(counted, tensors, strict=True)], spec
            )
            output = functional_call(wrapped, {inside[name]: p for name, p in given.items()}, (one,))
            return self.objective(output, one).reshape(-1)[k]

        detached = {name: p.detach() for name, p in self.params.items()}
        one = 2 * sum(p.numel() * p.element_size() for p in detached.values())  # vmap holds about two copies
        for rows in chunks(size, self.max_bytes or _VMAP_BYTES, one):
            sample = [leaf[rows] for leaf, c in zip(tensors, counted, strict=True) if c]
            for k in range(columns):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    yield vmap(grad(value), in_dims=(None, 0, None))(detached, sample, k)

    def _by_loop(self, batch: Batch, size: int, columns: int) -> dict[str, Tensor]:
        params = list(self.params.values())
        total = {name: zeros_for(p) for name, p in self.params.items()}
        try:
            for n in range(size):
                one = samples(batch, [n], size)
                values = self.objective(self.forward(self.model, one), one).reshape(-1)
                for k in range(columns if values.requires_grad else 0):  # a sample may use no parameter
                    found = torch.autograd.grad(values[k], params, retain_graph=k < columns - 1, allow_unused=True)
                    for own, g in zip(total.values(), found, strict=True):
                        if g is not None:
                            accumulate(own, g.to_dense()[None].to(own.dtype, copy=True), self.moment)
        except RuntimeError as error:
            owners = sorted({name.rpartition(".")[0] or "the model" for name in self.params})
            raise RuntimeError(
                f"no exact per-sample gradient for module {', '.join(owners)}: {error}; "
                "freeze its parameters or make it run on a batch of one"
            ) from error
        return total


class _Forward(nn.Module):
    """The user's forward as a module, so that `functional_call` can swap the model's parameters."""

    def __init__(self, model: nn.Module, run: Forward):
        super().__init__()
        self.training = model.training
        self.model, self.run = model, run

    def forward(self, batch: Batch) -> Any:
        return self.run(self.model, batch)


def accumulate(total: Tensor, per_sample: Tensor, moment: str) -> None:
    """Add the moment of per-sample gradients, overwriting them: fresh memory would cost more than the sums."""
    powers = per_sample.abs_() if moment == "abs" else per_sample.square_()
    total.add_(powers[0] if len(powers) == 1 else powers.sum(0))


def zeros_for(parameter: Tensor) -> Tensor:
    """Give zeros to accumulate in: at least float32."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False).detach()
