"""Deficits: what keeps a network, for some epochs, from seeing what there is to see.

A deficit is a function of a batch, ``deficit(x, y, generator) -> (x, y)``: images as the network sees
them, shape (B, C, H, W), labels, shape (B,), and a generator on the CPU for what it draws. In a loop
of your own call it while it lasts; `DeficitPlugin` does so in an Avalanche strategy, and `apply_deficit`
makes a data set of it.

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
from torch import Tensor

from mas.annotations import Count, Decay, NonNegativeInt
from mas.benchmarks.images import Images
from mas.imports import IMPORT, check_options, import_function

Batch = tuple[Tensor, Tensor]
Deficit = Callable[[Tensor, Tensor, torch.Generator], Batch]
DeficitSpec = str | dict[str, Any] | Deficit

_CHUNK = 1000  # images impaired at once


def blur(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    factor: Count = 4,
    down: Literal["resize", "pool"] = "resize",
) -> Batch:
    """Blur: to a ``factor``-th of the resolution, and up again by bilinear interpolation.

    ``down``: "resize" goes down by antialiased bilinear interpolation, "pool" by averaging.

    >>> x = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(1, 1, 4, 4)
    >>> blur(x, torch.zeros(1), torch.Generator(), factor=2, down="pool")[0][0, 0, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    high, wide = _of_images(x, "blur").shape[2:]
    if not 1 <= factor <= min(high, wide):
        raise ValueError(f"blur: factor is {factor}; images of {high}x{wide} pixels allow 1 to {min(high, wide)}")
    small = (round(high / factor), round(wide / factor))
    if down == "pool":
        x = F.interpolate(x, small, mode="area")
    else:
        x = F.interpolate(x, small, mode="bilinear", antialias=True)
    return F.interpolate(x, (high, wide), mode="bilinear"), y


def flip(
    x: Tensor, y: Tensor, generator: torch.Generator, *, axis: Literal["vertical", "horizontal"] = "vertical"
) -> Batch:
    """Flip: upside down, or mirrored; all that is to be learned is still there, in another place."""
    return _of_images(x, "flip").flip(-2 if axis == "vertical" else -1), y


def label_permutation(x: Tensor, y: Tensor, generator: torch.Generator, *, classes: int = 0, seed: int = 0) -> Batch:
    """Label permutation: each class goes by the name of another, always the same; the images stay.

    The ``classes`` are put in one cycle, drawn from ``seed``, so that none keeps its name.
    """
    if len(y) and not int(y.max()) < classes:
        raise ValueError(f"label_permutation: classes is {classes}, and a label is {int(y.max())}; give their number")
    cycle = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    shown = torch.empty_like(cycle)
    shown[cycle] = cycle.roll(-1)
    return x, shown.to(y.device)[y]


def noise(x: Tensor, y: Tensor, generator: torch.Generator, *, labels: Literal["drawn", "kept"] = "drawn") -> Batch:
    """Noise: normal noise in place of each image, with the mean and deviation of its channel in the batch.

    ``labels``: "drawn" gives each the label of another image of the batch by lot, so that nothing at
    all is to be learned; "kept" leaves them.
    """
    axes = (0, *range(2, x.ndim)) if x.ndim > 2 else (0,)
    mean, deviation = x.mean(axes, keepdim=True), x.std(axes, keepdim=True, correction=0)
    drawn = torch.randn(x.shape, generator=generator).to(x)
    if labels == "drawn":
        y = y[torch.randperm(len(y), generator=generator).to(y.device)]
    return drawn * deviation + mean, y


def occlusion(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    share: Decay = 0.5,
    place: Literal["centre", "random"] = "centre",
) -> Batch:
    """Occlusion: zeros in a rectangle of ``share`` of each side, in the centre or anywhere, image by image."""
    high, wide = _of_images(x, "occlusion").shape[2:]
    rows = _covered(high, round(share * high), len(x), place, generator)
    columns = _covered(wide, round(share * wide), len(x), place, generator)
    if not (rows.any() and columns.any()):
        raise ValueError(f"occlusion: share is {share}; of images of {high}x{wide} pixels that covers none; give more")
    hidden = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.device)
    return x.masked_fill(hidden, 0.0), y


def missing_channel(x: Tensor, y: Tensor, generator: torch.Generator, *, channel: NonNegativeInt = 0) -> Batch:
    """Missing channel: zeros in one channel of each image, as in a colour that is not seen."""
    channels = _of_images(x, "missing_channel").shape[1]
    if channels < 2 or not 0 <= channel < channels:
        allowed = f"0 to {channels - 1}" if channels > 1 else "none, as nothing would be left"
        raise ValueError(f"missing_channel: channel is {channel}; images of {channels} channel(s) allow {allowed}")
    return x.index_fill(1, torch.tensor([channel], device=x.device), 0.0), y


DEFICITS: dict[str, Callable[..., Batch]] = {
    f.__name__: f for f in (blur, flip, label_permutation, noise, occlusion, missing_channel)
}
"""Name in YAML -> function of (x, y, generator, options). Its docstring's first line describes it."""

FILLED_IN = frozenset({"x", "y", "generator", "classes", "seed"})  # arguments that are no options


def make_deficit(spec: DeficitSpec, classes: int, seed: int = 0) -> Deficit:
    """Return a deficit by its name, or by a map with ``name`` and its options; a function is returned as it is.

    Args:
        spec: what it is.
        classes: their number, for `label_permutation`.
        seed: of what stays the same for the whole training, such as which label stands for which.

    Raises:
        ValueError: an unknown name or option.
    """
    if callable(spec):
        return spec
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if name not in (*DEFICITS, IMPORT):
        raise ValueError(f"deficit is {name!r}; known are {', '.join(DEFICITS)}")
    function = import_function(options.pop("function")) if name == IMPORT else DEFICITS[name]
    check_options(function, options, FILLED_IN, f"deficit {name}")
    takes = inspect.signature(function).parameters
    given = {key: value for key, value in (("classes", classes), ("seed", seed)) if key in takes}
    return partial(function, **options, **given)


def apply_deficit(images: Images, deficit: Deficit, seed: int = 0) -> Images:
    """Give images as they are seen under a deficit, for good: random parts are drawn once for each image.

    Args:
        images: what the network sees in evaluation is what is impaired; training augmentation comes after,
            and before the pixels are standardised, as it does for clear images.
        deficit: from `make_deficit`, or your own.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [deficit(images.batch(i), images.labels[i], generator) for i in torch.arange(len(images)).split(_CHUNK)]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    pixels = x if images.scale is None else x * images.scale[1] + images.scale[0]
    return replace(images, pixels=pixels, labels=y, rows=torch.arange(len(y)), changes=())


class DeficitPlugin(SupervisedPlugin[Any]):
    """Impair what a strategy trains on, for some epochs. What it is tested on stays clear.

    All that is in the batch when an iteration begins is impaired: also what a replay buffer adds.

    Args:
        deficit: from `make_deficit`, or your own.
        start: the first impaired epoch. Epochs count from 0 over all that the strategy trains.
        end: the first epoch that is clear again.
        seed: of the deficit's draws; each epoch has its own, whatever else is drawn.
        epochs: that are to be trained in all, if that is known: then a deficit past them is refused.

    Raises:
        ValueError: an empty or negative range of epochs, or one past the end.
    """

    def __init__(self, deficit: Deficit, start: int, end: int, seed: int = 0, epochs: int | None = None):
        super().__init__()
        if not 0 <= start < end:
            raise ValueError(f"deficit from epoch {start} to {end}; give 0 <= start < end")
        if epochs is not None and end > epochs:
            raise ValueError(f"deficit from epoch {start} to {end}, past the end of training after {epochs} epochs")
        self.deficit, self.start, self.end, self.seed = deficit, start, end, seed
        self.epoch = 0
        """Epochs trained so far."""
        self.active = start == 0
        """Whether the epoch that is trained is impaired; after it, whether it was; before an experience, whether the
        first will be."""
        self.generator = torch.Generator()

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """See whether its first epoch is impaired."""
        self.active = self.start <= self.epoch < self.end

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """See whether it is impaired, and begin its own draws."""
        self.active = self.start <= self.epoch < self.end
        self.generator.manual_seed(self.seed + self.epoch)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Impair the batch, while the deficit lasts."""
        if self.active:
            strategy.mbatch[0], strategy.mbatch[1] = self.deficit(strategy.mb_x, strategy.mb_y, self.generator)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count it."""
        self.epoch += 1


def _of_images(x: Tensor, name: str) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"{name} is for images, shape (batch, channels, height, width); got shape {tuple(x.shape)}")
    return x


def _covered(length: int, covered: int, count: int, place: str, generator: torch.Generator) -> Tensor:
    """Say which of ``length`` rows are hidden in each of ``count`` images, shape (count, length)."""
    room = length - covered
    first = torch.full((count,), room // 2)
    if place == "random":
        first = torch.randint(room + 1, (count,), generator=generator)
    at = torch.arange(length)
    return (at >= first[:, None]) & (at < first[:, None] + covered)
