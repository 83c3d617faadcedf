"""The head of a probe: find it, fit a new one to a task on the frozen features, and put it in place."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mas.batches import Batch, Forward, batch_size, labels_of, run_forward, with_samples
from mas.finite import check_finite
from mas.state import preserving_state

_ITERATIONS = 500  # of L-BFGS, at most; a head is fitted long before


def samples_of(batches: Sequence[Batch], name: str = "batches") -> list[Batch]:
    """Return the batches that hold a sample; raise ValueError if none does."""
    kept = list(with_samples(batches))
    if not kept:
        raise ValueError(f"{name} gave no sample; give a list of batches (x, y)")
    return kept


def find_head(body: nn.Module, batch: Batch, forward: Forward | None) -> str:
    """Return the name of the module with parameters that begins last: a module begins before those inside it."""
    owners = {_owner(name) for name, _ in body.named_parameters()} - {""}
    called: list[str] = []
    hooks = [body.get_submodule(name).register_forward_pre_hook(partial(_note_call, called, name)) for name in owners]
    try:
        with preserving_state(body), torch.no_grad():
            (forward or run_forward)(body, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise ValueError("the probe has no last layer that a head could replace; name it: head='fc'")
    return called[-1]


def _owner(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to; "fc" for "fc.parametrizations.weight.original"."""
    module, is_parametrized, _ = parameter.partition(".parametrizations.")
    return module if is_parametrized else parameter.rpartition(".")[0]


def _note_call(called: list[str], name: str, *arguments: object) -> None:
    called.append(name)


def check_head(model: nn.Module, head: str, batch: Batch, run: Forward) -> None:
    """Raise ValueError if a network with a new head at ``head`` gives no output of shape (N, classes)."""
    classes = model.get_submodule(head).out_features
    try:
        with preserving_state(model), torch.no_grad():
            output = run(model, batch)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"after a new head at {head!r} the network fails ({reason}); name its last layer") from None
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != classes:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"with a new head at {head!r} the output is {found}, not (N, {classes}); name the last layer")


def features_of(body: nn.Module, head: str, batches: Sequence[Batch], run: Forward) -> Tensor:
    """Return what enters the head in eval mode, shape (N, features), float64."""
    modules = dict(body.named_modules())
    if head not in modules or head == "":
        raise ValueError(f"head is {head!r}; the probe has no such module: give the name of its last layer")
    found: list[Tensor] = []
    hook = modules[head].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].detach().double()))
    try:
        with preserving_state(body), torch.no_grad():
            for batch in batches:
                run(body, batch)
    finally:
        hook.remove()
    if not found:
        raise ValueError(f"head is {head!r}, which the forward pass does not call; give the name of the last layer")
    if any(part.ndim != 2 for part in found):
        raise ValueError(f"the input of {head!r} has shape {tuple(found[0].shape)}; a head needs (N, features)")
    features = torch.cat(found)
    check_finite(features, f"the input of {head!r}")
    return features


def class_numbers(batches: Sequence[Batch], classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the labels as numbers from 0, shape (N,), and the sorted names of the classes, shape (classes,).

    Raises:
        ValueError: labels that are missing, no whole numbers, of one class only, or of fewer classes than stated.
    """
    labels = torch.cat([_whole_numbers(batch) for batch in batches])
    names, numbers = labels.unique(return_inverse=True)
    if classes is not None and len(labels) < classes:
        raise ValueError(f"{len(labels)} samples for {classes} classes; give one sample of each class or more")
    if classes is not None and len(names) != classes:
        raise ValueError(f"the labels have {len(names)} classes; classes={classes} were announced")
    if len(names) < 2:
        raise ValueError(f"all labels are {names.tolist()}; a task has two classes or more")
    return numbers, names


def known_numbers(batches: Sequence[Batch], names: Tensor) -> Tensor:
    """Return the labels of test batches as numbers of the classes ``names`` of the training data, shape (N,)."""
    labels = torch.cat([_whole_numbers(batch) for batch in batches]).to(names)
    strange = sorted({*labels.tolist()} - {*names.tolist()})
    if strange:
        raise ValueError(f"test has the classes {strange}, which train lacks; give both the same classes")
    return torch.searchsorted(names, labels)


def with_labels(batches: Sequence[Batch], y: Tensor) -> list[Batch]:
    """Return the batches with the labels y, shape (N,), in place of their own."""
    own_labels = y.split([len(batch[1]) for batch in batches])
    return [(batch[0], own, *batch[2:]) for batch, own in zip(batches, own_labels, strict=True)]


def _whole_numbers(batch: Batch) -> Tensor:
    labels = labels_of(batch, "an embedding")
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels are a {type(labels).__name__}; give a tensor of whole numbers, shape (N,)")
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give whole numbers, shape (N,)")
    if len(labels) != batch_size(batch):
        raise ValueError(
            f"a batch has {batch_size(batch)} samples and {len(labels)} labels; give each sample one label"
        )
    return labels


def fit_head(features: Tensor, y: Tensor, classes: int, weight_decay: float) -> nn.Linear:
    """Return the head with the least mean cross-entropy + ½ weight_decay ‖weights‖², in float64.

    Args:
        features: shape (N, features), float64.
        y: numbers from 0 to classes - 1, shape (N,).
        classes: the head's outputs.
        weight_decay: above 0; the bias is not decayed.
    """
    if not weight_decay > 0:
        raise ValueError(f"weight_decay is {weight_decay}; give a number above 0")
    if len(features) != len(y):
        raise ValueError(f"the batches have {len(features)} samples and {len(y)} labels; give each sample one label")
    head = zero_head(features.shape[1], classes, device=features.device)
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=_ITERATIONS,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    y = y.to(features.device)

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(head(features), y) + weight_decay / 2 * head.weight.square().sum()
        value.backward()
        return float(value.detach())

    with torch.enable_grad():
        optimizer.step(loss)
    return head.requires_grad_(False)


def put_head(body: nn.Module, name: str, head: nn.Linear) -> nn.Module:
    """Put a copy of a head in the place of a module of ``body``, in the body's number type and on its device."""
    old = body.get_submodule(name)
    like = next(chain(old.parameters(), body.parameters(), head.parameters()))
    parent, _, own = name.rpartition(".")
    setattr(body.get_submodule(parent), own, deepcopy(head).to(like.device, like.dtype))
    return body


def zero_head(features: int, classes: int, *, device: torch.device | str = "cpu") -> nn.Linear:
    """Return a head with weights of 0, float64: every class is equally likely."""
    head = nn.utils.skip_init(nn.Linear, features, classes, dtype=torch.float64, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
