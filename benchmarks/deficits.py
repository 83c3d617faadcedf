"""Deficits: transformations that degrade the training data for a number of epochs.

A deficit is a function of a batch, ``deficit(x, y, generator) -> (x, y)``: images as the network gets
them, shape (B, C, H, W), labels, shape (B,), and a CPU generator for random draws. In your own training
loop, call it on each batch of the degraded epochs. `DeficitPlugin` does so in an Avalanche strategy, and
`apply_deficit` applies it to a whole data set.

Source: Achille, Rovere and Soatto 2019, Critical Learning Periods in Deep Networks.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from mas.annotations import Count, Decay, NonNegativeInt
from mas.benchmarks.images import Images
from mas.imports import IMPORT, check_options, import_function

Batch = tuple[Tensor, Tensor]
Deficit = Callable[[Tensor, Tensor, torch.Generator], Batch]
DeficitSpec = str | dict[str, Any] | Deficit

_CHUNK = 1000  # images transformed at once


def blur(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    factor: Count = 4,
    down: Literal["resize", "pool"] = "resize",
) -> Batch:
    """Blur: reduce the resolution by ``factor``, then restore the size by bilinear interpolation.

    ``down``: "resize" reduces by antialiased bilinear interpolation, "pool" by averaging.

    >>> x = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(1, 1, 4, 4)
    >>> blur(x, torch.zeros(1), torch.Generator(), factor=2, down="pool")[0][0, 0, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    height, width = _check_images(x, "blur").shape[2:]
    largest = min(height, width)
    if not 1 <= factor <= largest:
        raise ValueError(f"blur: factor is {factor}; images of {height}x{width} pixels allow 1 to {largest}")
    small = (round(height / factor), round(width / factor))
    if down == "pool":
        x = F.interpolate(x, small, mode="area")
    else:
        x = F.interpolate(x, small, mode="bilinear", antialias=True)
    return F.interpolate(x, (height, width), mode="bilinear"), y


def flip(
    x: Tensor, y: Tensor, generator: torch.Generator, *, axis: Literal["vertical", "horizontal"] = "vertical"
) -> Batch:
    """Flip: turn images upside down, or mirror them; no information is lost."""
    images = _check_images(x, "flip")
    return images.flip(-2 if axis == "vertical" else -1), y


def label_permutation(x: Tensor, y: Tensor, generator: torch.Generator, *, classes: int = 0, seed: int = 0) -> Batch:
    """Label permutation: replace each class's label by that of another class, always the same; images stay.

    The ``classes`` form one cycle, drawn from ``seed``, so that none keeps its label.
    """
    largest = int(y.max()) if len(y) else -1
    if largest >= classes:
        raise ValueError(f"label_permutation: classes is {classes}, and a label is {largest}; give their number")
    cycle = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    new_label = torch.empty_like(cycle)
    new_label[cycle] = cycle.roll(-1)
    return x, new_label.to(y.device)[y]


def noise(x: Tensor, y: Tensor, generator: torch.Generator, *, labels: Literal["drawn", "kept"] = "drawn") -> Batch:
    """Noise: normal noise in place of each image, with the mean and deviation of its channel in the batch.

    ``labels``: "drawn" permutes the labels of the batch at random, so that there is nothing to learn;
    "kept" leaves them.
    """
    axes = (0, *range(2, x.ndim)) if x.ndim > 2 else (0,)
    mean = x.mean(axes, keepdim=True)
    deviation = x.std(axes, keepdim=True, correction=0)
    drawn = torch.randn(x.shape, generator=generator).to(x)
    if labels == "drawn":
        order = torch.randperm(len(y), generator=generator)
        y = y[order.to(y.device)]
    return drawn * deviation + mean, y


def occlusion(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    share: Decay = 0.5,
    place: Literal["centre", "random"] = "centre",
) -> Batch:
    """Occlusion: zeros in a rectangle of ``share`` of each side, in the centre or at a random place in each image."""
    height, width = _check_images(x, "occlusion").shape[2:]
    rows = _hidden(height, round(share * height), count=len(x), place=place, generator=generator)
    columns = _hidden(width, round(share * width), count=len(x), place=place, generator=generator)
    if not (rows.any() and columns.any()):
        raise ValueError(
            f"occlusion: share is {share}; of images of {height}x{width} pixels that covers none; give more"
        )
    hidden = rows[:, None, :, None] & columns[:, None, None, :]
    return x.masked_fill(hidden.to(x.device), 0.0), y


def missing_channel(x: Tensor, y: Tensor, generator: torch.Generator, *, channel: NonNegativeInt = 0) -> Batch:
    """Missing channel: zeros in one channel of each image, such as one colour."""
    channels = _check_images(x, "missing_channel").shape[1]
    if channels < 2 or not 0 <= channel < channels:
        allowed = f"0 to {channels - 1}" if channels > 1 else "none, as nothing would be left"
        raise ValueError(f"missing_channel: channel is {channel}; images of {channels} channel(s) allow {allowed}")
    index = torch.tensor([channel], device=x.device)
    return x.index_fill(1, index, 0.0), y


DEFICITS: dict[str, Callable[..., Batch]] = {
    "blur": blur,
    "flip": flip,
    "label_permutation": label_permutation,
    "noise": noise,
    "occlusion": occlusion,
    "missing_channel": missing_channel,
}
"""Name in YAML -> function of (x, y, generator, options). Its docstring's first line describes it."""

FILLED_IN = frozenset({"x", "y", "generator", "classes", "seed"})  # arguments that are not options


def make_deficit(spec: DeficitSpec, classes: int, *, seed: int = 0) -> Deficit:
    """Return a deficit by its name, or by a map with ``name`` and its options; return a function unchanged.

    Args:
        spec: name, map or function.
        classes: number of classes, for `label_permutation`.
        seed: of choices that stay the same during training, such as the permutation of the labels.

    Raises:
        ValueError: an unknown name or option.
    """
    if callable(spec):
        return spec
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if name == IMPORT:
        function = import_function(options.pop("function"))
    elif isinstance(name, str) and name in DEFICITS:
        function = DEFICITS[name]
    else:
        raise ValueError(f"deficit is {name!r}; known are {', '.join(DEFICITS)}")
    check_options(function, options, FILLED_IN, f"deficit {name}")
    parameters = inspect.signature(function).parameters
    for key, value in {"classes": classes, "seed": seed}.items():
        if key in parameters:
            options[key] = value
    return partial(function, **options)


def apply_deficit(images: Images, deficit: Deficit, *, seed: int = 0) -> Images:
    """Return images with a deficit applied; random parts are drawn once for each image.

    Args:
        images: the deficit is applied to them as the network gets them in evaluation. Training augmentation
            comes afterwards, and before the pixels are standardised, as it does for clear images.
        deficit: from `make_deficit`, or your own.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = []
    labels = []
    for index in torch.arange(len(images)).split(_CHUNK):
        x, y = deficit(images.batch(index), images.labels[index], generator)
        pixels.append(_unstandardise(x, images))
        labels.append(y)
    y = torch.cat(labels)
    return replace(images, pixels=torch.cat(pixels), labels=y, rows=torch.arange(len(y)), changes=())


class DeficitPlugin(SupervisedPlugin):
    """Apply a deficit to the training batches for a range of epochs. Test data stay clear.

    The deficit is applied to the whole batch at the beginning of an iteration, including samples that
    a replay buffer has added.

    Args:
        deficit: from `make_deficit`, or your own.
        start: the first epoch with the deficit. Epochs count from 0 over all experiences.
        end: the first epoch without it.
        seed: of the deficit's draws, which do not depend on other random draws.
        epochs: number of epochs of the whole training, if known: then a deficit past them is refused.

    Raises:
        ValueError: an empty or negative range of epochs, or one past the end.
    """

    def __init__(self, deficit: Deficit, start: int, end: int, *, seed: int = 0, epochs: int | None = None):
        super().__init__()
        if not 0 <= start < end:
            raise ValueError(f"deficit from epoch {start} to {end}; give 0 <= start < end")
        if epochs is not None and end > epochs:
            raise ValueError(f"deficit from epoch {start} to {end}, past the end of training after {epochs} epochs")
        self.deficit = deficit
        self.start = start
        self.end = end
        self.seed = seed
        self.epoch = 0
        """Epochs trained so far."""
        self.active = start == 0
        """Whether the deficit applies to the current epoch; between epochs, to the last one; before an experience,
        to its first one."""
        self.generator = torch.Generator()

    def before_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Set whether the deficit applies to the first epoch."""
        self.active = self.start <= self.epoch < self.end

    def before_training_epoch(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Set whether the deficit applies to the epoch, and seed its draws."""
        self.active = self.start <= self.epoch < self.end
        self.generator.manual_seed(self.seed + self.epoch)

    def before_training_iteration(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Apply the deficit to the batch, if it is active."""
        if self.active:
            x, y = self.deficit(strategy.mb_x, strategy.mb_y, self.generator)
            strategy.mbatch[0] = x
            strategy.mbatch[1] = y

    def after_training_epoch(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Count the epoch."""
        self.epoch += 1


def _unstandardise(x: Tensor, images: Images) -> Tensor:
    if images.scale is None:
        return x
    mean, deviation = images.scale
    return x * deviation + mean


def _check_images(x: Tensor, name: str) -> Tensor:
    """Return ``x``; raise ValueError if it is not a batch of images."""
    if x.ndim != 4:
        raise ValueError(f"{name} is for images, shape (batch, channels, height, width); got shape {tuple(x.shape)}")
    return x


def _hidden(length: int, hidden: int, *, count: int, place: str, generator: torch.Generator) -> Tensor:
    """Return which of ``length`` rows are hidden in each of ``count`` images: booleans, shape (count, length)."""
    room = length - hidden
    first = torch.full((count, 1), room // 2)
    if place == "random":
        first = torch.randint(room + 1, (count,), generator=generator)[:, None]
    row = torch.arange(length)
    return (row >= first) & (row < first + hidden)
