"""Labelled images in memory, given out a whole batch at a time, as data sets of Avalanche.

A data loader asks Avalanche's data sets for one sample after another, which costs more than the
training step of a small network. Here a sample is a promise, and the collate function, torch's own or
that which Avalanche's loaders, replay buffers and strategies carry along, redeems a batch of them at once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torch.utils.data._utils.collate import default_collate_fn_map  # where its documentation says to extend it

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory, all of one shape.

    Attributes:
        pixels: shape (N, C, H, W), uint8 (0 to 255) or floating (0 to 1); shared between subsets.
        labels: shape (n,), int64.
        rows: shape (n,), the places in ``pixels`` of these images; by default all.
        changes: what is done to each batch, shape (B, C, H, W), floating, in this order.
        augment: what is done to a batch in training only, after the changes.
        scale: mean and standard deviation of each channel, each of shape (C, 1, 1), to standardise
            by at the end.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor = field(default=None)  # type: ignore[assignment]
    changes: tuple[Transform, ...] = ()
    augment: Transform | None = None
    scale: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", torch.arange(len(self.labels)))

    def __deepcopy__(self, memo: Any) -> "Images":
        return self  # it never changes, so that copies of a strategy need no copies of its data

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Give one image as in evaluation, shape (C, H, W), and its label."""
        return self.batch(torch.tensor([index]))[0], int(self.labels[index])

    def batch(self, index: Tensor, training: bool = False) -> Tensor:
        """Give images at ``index``, shape (B, C, H, W), floating."""
        x = self.pixels[self.rows[index]]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        for change in (*self.changes, *([self.augment] if training and self.augment else [])):
            x = change(x)
        return x if self.scale is None else (x - self.scale[0]) / self.scale[1]

    def subset(self, index: Tensor) -> "Images":
        """Give the images at ``index``; the pixels are shared."""
        return replace(self, labels=self.labels[index], rows=self.rows[index])

    def to(self, device: torch.device | str) -> "Images":
        """Give the same on a device."""
        scale = None if self.scale is None else (self.scale[0].to(device), self.scale[1].to(device))
        return replace(self, pixels=self.pixels.to(device), rows=self.rows.to(device), scale=scale)


Pair = tuple[Images, Images]  # train and test


class BatchedDataset(TaskAwareSupervisedClassificationDataset):
    """An Avalanche data set over `Images`: it is used as any other, and is quick in a data loader."""

    def __getitem__(self, index: Any) -> Any:
        """Give sample ``index``, as a sequence (x, y, task label), made when it is looked into; or a slice of all."""
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        return Sample(self, range(len(self))[index])  # counts from the end too, and says where the end is

    def batch(self, indices: Sequence[int]) -> list[Any]:
        """Give samples as tensors: images, labels, and each attribute that goes with every sample."""
        group = self._flat_data._transform_groups.current_group
        return [*_fetch(self._flat_data, torch.as_tensor(indices), group), *self._attributes(indices)]

    def _attributes(self, indices: Sequence[int]) -> Iterator[Tensor]:
        for attribute in self._data_attributes.values():
            if not attribute.use_in_getitem:
                continue
            if isinstance(attribute.data, ConstantSequence):
                yield torch.full((len(indices),), attribute.data[0])
            else:
                yield default_collate([attribute[i] for i in indices])


class Sample(Sequence[Any]):
    """One sample of a `BatchedDataset`, made when it is looked into."""

    __slots__ = ("dataset", "place")

    def __init__(self, dataset: BatchedDataset, place: int):
        self.dataset, self.place = dataset, place

    def _made(self) -> list[Any]:
        x, *rest = self.dataset.batch([self.place])
        return [x[0], *(part[0].item() if part.ndim == 1 else part[0] for part in rest)]

    def __getitem__(self, part: Any) -> Any:
        return self._made()[part]

    def __len__(self) -> int:
        return len(self._made())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._made())


def collate(samples: Sequence[Any]) -> list[Any]:
    """Make a batch of samples, all of a data set at once."""
    if not all(isinstance(sample, Sample) for sample in samples):
        return default_collate([list(sample) for sample in samples])
    places: dict[int, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        places[id(sample.dataset)].append(place)
    if len(places) == 1:
        return samples[0].dataset.batch([sample.place for sample in samples])
    batches = [samples[own[0]].dataset.batch([samples[p].place for p in own]) for own in places.values()]
    return _put_back(batches, [torch.tensor(own) for own in places.values()])


def _collate_samples(samples: Sequence[Any], *, collate_fn_map: Any = None) -> list[Any]:
    return collate(samples)


# torch's own collate function knows samples too: Avalanche uses it where experiences have no task labels.
default_collate_fn_map[Sample] = _collate_samples


def _fetch(data: Any, where: Tensor, group: str) -> list[Tensor]:
    """Give images and labels at places of whatever an Avalanche data set is made of.

    A tree of concatenations and subsets is followed down to its `Images`; data of another kind, and
    transforms that someone put on the way, are gone through sample by sample.
    """
    if isinstance(data, Images):
        return [data.batch(where, training=group == "train"), data.labels[where]]
    if isinstance(data, AvalancheDataset):
        return _fetch(data._flat_data, where, group)
    if not isinstance(data, FlatData):
        return default_collate([list(data[i])[:2] for i in where.tolist()])
    where = where if data._indices is None else _places(data)[where]
    if len(data._datasets) == 1:
        return _transformed(data, _fetch(data._datasets[0], where, group), group)
    ends = torch.tensor(data._cumulative_sizes)
    source = torch.searchsorted(ends, where, right=True)
    parts, order = [], []
    for number in source.unique().tolist():
        mine = (source == number).nonzero()[:, 0]
        rows = where[mine] - (int(ends[number - 1]) if number else 0)
        parts.append(_fetch(data._datasets[number], rows, group))
        order.append(mine)
    return _transformed(data, _put_back(parts, order), group)


def _transformed(data: Any, batch: list[Tensor], group: str) -> list[Tensor]:
    for groups in (getattr(data, name, None) for name in ("_frozen_transform_groups", "_transform_groups")):
        if groups is not None and groups[group] is not None:
            batch = default_collate([groups(list(sample), group_name=group) for sample in zip(*batch, strict=True)])
    return batch


def _places(data: Any) -> Tensor:
    """Give the indices of a subset as one tensor, made once."""
    known = data.__dict__.get("_indices_as_tensor")
    if known is None or known[0] is not data._indices:
        known = data.__dict__["_indices_as_tensor"] = data._indices, torch.tensor(list(data._indices))
    return known[1]


def _put_back(parts: Sequence[Sequence[Tensor]], places: Sequence[Tensor]) -> list[Tensor]:
    """Join parts of a batch, each row where it belongs."""
    if len(parts) == 1:
        return list(parts[0])
    back = torch.cat(list(places)).argsort()
    return [torch.cat(each)[back] for each in zip(*parts, strict=True)]


def as_dataset(images: Images, task_label: int = 0) -> BatchedDataset:
    """Give images as an Avalanche data set whose samples are (x, y, task label)."""
    return BatchedDataset(
        [images],
        data_attributes=[
            DataAttribute(images.labels.tolist(), "targets"),
            DataAttribute(ConstantSequence(task_label, len(images)), "targets_task_labels", use_in_getitem=True),
        ],
        collate_fn=collate,
    )


def keep_on_device(benchmark: Any, device: torch.device | str, free: int) -> None:
    """Move the images of a benchmark's streams to a device, if they take at most half of its ``free`` bytes.

    Batches are then made where they are used. Images that experiences share stay shared.
    """
    flats = [e.dataset._flat_data for stream in benchmark.streams.values() for e in stream]
    pixels = {id(i.pixels): i.pixels for flat in flats for i in flat._datasets}
    if sum(p.nbytes for p in pixels.values()) > free / 2:
        return
    moved = {key: p.to(device) for key, p in pixels.items()}
    for flat in flats:
        flat._datasets = [replace(i, pixels=moved[id(i.pixels)]).to(device) for i in flat._datasets]


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation of each channel, each of shape (C, 1, 1), without holding all as floats."""
    total = square = torch.zeros(images.pixels.shape[1], dtype=torch.float64)
    for rows in torch.arange(len(images)).split(4096):
        x = images.batch(rows).double().transpose(0, 1).flatten(1)
        total, square = total + x.sum(1), square + x.square().sum(1)
    count = len(images) * images.pixels[0, 0].numel()
    mean = total / count
    deviation = (square / count - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def random_flip(x: Tensor) -> Tensor:
    """Mirror each image or not, at random."""
    return torch.where((torch.rand(len(x), 1, 1, 1) < 0.5).to(x.device), x, x.flip(-1))


def crop(x: Tensor, margin: int = 4) -> Tensor:
    """Shift each image by up to ``margin`` pixels each way at random, zeros where nothing was."""
    n, c, high, wide = x.shape
    padded = torch.nn.functional.pad(x, (margin,) * 4)
    down, right = torch.randint(2 * margin + 1, (2, n, 1))  # on the CPU: the same draws on every device
    rows, columns = down + torch.arange(high), right + torch.arange(wide)
    places = torch.arange(n)[:, None, None, None], torch.arange(c)[:, None, None], rows[:, None, :, None]
    return padded[tuple(p.to(x.device) for p in (*places, columns[:, None, None, :]))]


def crop_and_flip(x: Tensor) -> Tensor:
    """Do both."""
    return random_flip(crop(x))


AUGMENTATIONS: dict[str, Transform | None] = {
    "none": None,
    "flip": random_flip,
    "crop": crop,
    "crop_flip": crop_and_flip,
}
