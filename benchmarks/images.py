"""Labelled images in memory, fetched a whole batch at a time, as Avalanche data sets.

A data loader asks an Avalanche data set for one sample after another, which costs more than the
training step of a small network. Here samples are lazy references, and the collate function fetches
a whole batch at once. Avalanche's loaders, replay buffers and strategies carry the collate function along;
torch's default collate function knows the samples too.
"""

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torch.utils.data._utils.collate import default_collate_fn_map  # torch documents this as the way to extend it

Transform = Callable[[Tensor], Tensor]
Group = Literal["train", "eval"]  # of Avalanche's transforms
Item = Tensor | int | float  # one part of a sample


@dataclass(frozen=True, eq=False)
class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory, all of one shape.

    Attributes:
        pixels: shape (N, C, H, W), uint8 (0 to 255) or floating (0 to 1); shared between subsets.
        labels: shape (n,), int64.
        rows: shape (n,), the indices of these images in ``pixels``; by default all.
        changes: functions applied to each batch, shape (B, C, H, W), floating, in this order.
        augment: a function applied to training batches only, after the changes.
        scale: mean and standard deviation of each channel, each of shape (C, 1, 1), for the final
            standardisation.
        name: of the task that the images are, see `mas.benchmarks.experience_names`.
        class_names: the name of each class, by its label; None if the data set has none.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor = field(default=None)  # type: ignore[assignment]
    changes: tuple[Transform, ...] = ()
    augment: Transform | None = None
    scale: tuple[Tensor, Tensor] | None = None
    name: str | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", torch.arange(len(self.labels)))

    def __deepcopy__(self, memo: dict[int, object]) -> "Images":
        return self  # immutable, so that copies of a strategy share the data

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image as in evaluation, shape (C, H, W), and its label."""
        (image,) = self.batch(torch.tensor([index]))
        return image, int(self.labels[index])

    def batch(self, index: Tensor, *, training: bool = False) -> Tensor:
        """Return the images at ``index``, shape (B, C, H, W), floating."""
        x = self.pixels[self.rows[index]]
        if x.dtype == torch.uint8:
            x = x.float() / 255
        for change in self.changes:
            x = change(x)
        if training and self.augment:
            x = self.augment(x)
        if self.scale is None:
            return x
        mean, deviation = self.scale
        return (x - mean) / deviation

    def subset(self, index: Tensor) -> "Images":
        """Return the images at ``index``; they share the pixels."""
        return replace(self, labels=self.labels[index], rows=self.rows[index])

    def to(self, device: torch.device | str) -> "Images":
        """Return the same images with their pixels on a device."""
        scale = None
        if self.scale is not None:
            mean, deviation = self.scale
            scale = (mean.to(device), deviation.to(device))
        return replace(self, pixels=self.pixels.to(device), rows=self.rows.to(device), scale=scale)


Pair = tuple[Images, Images]  # train and test


class BatchedDataset(TaskAwareSupervisedClassificationDataset):
    """An Avalanche data set over `Images`: used as any other, and fast in a data loader."""

    @overload
    def __getitem__(self, index: int) -> "Sample": ...

    @overload
    def __getitem__(self, index: slice) -> "BatchedDataset": ...

    def __getitem__(self, index: int | slice) -> "Sample | BatchedDataset":
        """Return sample ``index``, a lazy sequence (x, y, task label); or the subset of a slice."""
        positions = range(len(self))
        if isinstance(index, slice):
            return self.subset(positions[index])
        return Sample(self, positions[index])  # a range takes negative indices, and raises IndexError past the end

    def batch(self, indices: Sequence[int]) -> list[Tensor]:
        """Return samples as tensors: images, labels, and each attribute that belongs to the samples."""
        group = self._flat_data._transform_groups.current_group
        images_and_labels = _fetch(self._flat_data, torch.as_tensor(indices), group)
        return [*images_and_labels, *self._attributes(indices)]

    def _attributes(self, indices: Sequence[int]) -> Iterator[Tensor]:
        for attribute in self._data_attributes.values():
            if not attribute.use_in_getitem:
                continue
            if isinstance(attribute.data, ConstantSequence):
                yield torch.full((len(indices),), attribute.data[0])
            else:
                yield default_collate([attribute[i] for i in indices])


class Sample(Sequence[Item]):
    """A lazy reference to one sample of a `BatchedDataset`, which is fetched when an item is read."""

    __slots__ = ("dataset", "position")

    def __init__(self, dataset: BatchedDataset, position: int):
        self.dataset = dataset
        self.position = position

    def _items(self) -> list[Item]:
        x, *rest = self.dataset.batch([self.position])
        return [x[0], *(part[0].item() if part.ndim == 1 else part[0] for part in rest)]

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self._items()[index]

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items())


def collate(samples: Sequence[Sequence[Item]]) -> list[Tensor]:
    """Make a batch of samples; those of one data set are fetched together."""
    references = [sample for sample in samples if isinstance(sample, Sample)]
    if len(references) < len(samples):
        return default_collate([list(sample) for sample in samples])
    places: dict[int, list[int]] = defaultdict(list)  # where in the batch the samples of each data set stand
    for place, sample in enumerate(references):
        places[id(sample.dataset)].append(place)
    parts = []
    for own in places.values():
        dataset = references[own[0]].dataset
        parts.append(dataset.batch([references[place].position for place in own]))
    return _reorder(parts, [torch.tensor(own) for own in places.values()])


def _collate_samples(samples: Sequence[Sample], *, collate_fn_map: object = None) -> list[Tensor]:
    return collate(samples)


# Avalanche uses torch's own collate function for experiences without task labels.
default_collate_fn_map[Sample] = _collate_samples


def _fetch(data: Dataset[Any], index: Tensor, group: Group) -> list[Tensor]:
    """Return the images and labels at ``index`` of the data that an Avalanche data set is made of.

    Concatenations and subsets are resolved down to the `Images`. Data of another kind, and
    transforms that were added on the way, are processed sample by sample.
    """
    if isinstance(data, Images):
        return [data.batch(index, training=group == "train"), data.labels[index]]
    if isinstance(data, AvalancheDataset):
        return _fetch(data._flat_data, index, group)
    if not isinstance(data, FlatData):
        return default_collate([list(data[i])[:2] for i in index.tolist()])
    if data._indices is not None:
        index = _indices_of(data)[index]
    if len(data._datasets) == 1:
        batch = _fetch(data._datasets[0], index, group)
    else:
        batch = _fetch_concatenated(data, index, group)
    return _transformed(data, batch, group)


def _fetch_concatenated(data: FlatData, index: Tensor, group: Group) -> list[Tensor]:
    """Return the images and labels at ``index`` of several data sets, one after the other."""
    ends = torch.tensor(data._cumulative_sizes)
    source = torch.searchsorted(ends, index, right=True)
    parts = []
    places = []
    for number in source.unique().tolist():
        place = (source == number).nonzero()[:, 0]
        start = int(ends[number - 1]) if number else 0
        parts.append(_fetch(data._datasets[number], index[place] - start, group))
        places.append(place)
    return _reorder(parts, places)


def _transformed(data: FlatData, batch: list[Tensor], group: Group) -> list[Tensor]:
    for name in ("_frozen_transform_groups", "_transform_groups"):
        transforms = getattr(data, name, None)
        if transforms is not None and transforms[group] is not None:
            samples = [list(sample) for sample in zip(*batch, strict=True)]
            batch = default_collate([transforms(sample, group_name=group) for sample in samples])
    return batch


def _indices_of(subset: FlatData) -> Tensor:
    """Return the indices of a subset as a tensor, which is made once."""
    known = subset.__dict__.get("_indices_as_tensor")
    if known is None or known[0] is not subset._indices:
        known = (subset._indices, torch.tensor(list(subset._indices)))
        subset.__dict__["_indices_as_tensor"] = known
    return known[1]


def _reorder(parts: Sequence[Sequence[Tensor]], places: Sequence[Tensor]) -> list[Tensor]:
    """Concatenate parts of a batch, and move each row to its place."""
    if len(parts) == 1:
        return list(parts[0])
    order = torch.cat(list(places)).argsort()
    return [torch.cat(columns)[order] for columns in zip(*parts, strict=True)]


def as_dataset(images: Images, task_label: int = 0) -> BatchedDataset:
    """Return an Avalanche data set of images, whose samples are (x, y, task label)."""
    task_labels = ConstantSequence(task_label, len(images))
    return BatchedDataset(
        [images],
        data_attributes=[
            DataAttribute(images.labels.tolist(), "targets"),
            DataAttribute(task_labels, "targets_task_labels", use_in_getitem=True),
        ],
        collate_fn=collate,
    )


def sources_of(dataset: AvalancheDataset) -> list[tuple[Images, int]]:
    """Return, for each sample of a data set, the images that it comes from and its position in them.

    Raises:
        ValueError: some samples come from elsewhere, or a transform was added on the way.
    """
    return _sources(dataset, range(len(dataset)))


def _sources(data: Any, index: Sequence[int]) -> list[tuple[Images, int]]:
    if isinstance(data, Images):
        return [(data, int(position)) for position in index]
    if isinstance(data, AvalancheDataset):
        return _sources(data._flat_data, index)
    if not isinstance(data, FlatData):
        raise ValueError(f"samples come from a {type(data).__name__}; expected Images")
    if data._indices is not None:
        own = _indices_of(data)
        index = [int(own[position]) for position in index]
    found = []
    for position in index:
        number = bisect.bisect_right(data._cumulative_sizes, position)
        start = data._cumulative_sizes[number - 1] if number else 0
        found += _sources(data._datasets[number], [position - start])
    return found


def keep_on_device(benchmark: CLScenario, device: torch.device | str, *, free: int) -> None:
    """Move the images of a benchmark's streams to a device, if they take at most half of its ``free`` bytes.

    Batches are then made on the device. Images that experiences share stay shared.
    """
    flats = [experience.dataset._flat_data for stream in benchmark.streams.values() for experience in stream]
    every = [images for flat in flats for images in flat._datasets]
    pixels = {id(images.pixels): images.pixels for images in every}
    if sum(shared.nbytes for shared in pixels.values()) > free / 2:
        return
    moved = {key: shared.to(device) for key, shared in pixels.items()}
    for flat in flats:
        flat._datasets = [replace(images, pixels=moved[id(images.pixels)]).to(device) for images in flat._datasets]


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, each of shape (C, 1, 1).

    Images are converted to floating point in chunks, not all at once.
    """
    total = torch.zeros(images.pixels.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for index in torch.arange(len(images)).split(4096):
        x = images.batch(index).double().transpose(0, 1).flatten(1)
        total = total + x.sum(1)
        squares = squares + x.square().sum(1)
    count = len(images) * images.pixels[0, 0].numel()
    mean = total / count
    variance = squares / count - mean.square()
    deviation = variance.clamp(min=1e-12).sqrt()
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def random_flip(x: Tensor) -> Tensor:
    """Mirror each image with probability ½."""
    mirrored = (torch.rand(len(x), 1, 1, 1) < 0.5).to(x.device)
    return torch.where(mirrored, x, x.flip(-1))


def crop(x: Tensor, margin: int = 4) -> Tensor:
    """Shift each image at random by up to ``margin`` pixels in each direction, and fill with zeros."""
    count, channels, height, width = x.shape
    padded = torch.nn.functional.pad(x, (margin,) * 4)
    down, right = torch.randint(2 * margin + 1, (2, count, 1))  # on the CPU: the same draws on every device
    rows = down + torch.arange(height)
    columns = right + torch.arange(width)
    image_index = torch.arange(count)[:, None, None, None]
    channel_index = torch.arange(channels)[:, None, None]
    index = (image_index, channel_index, rows[:, None, :, None], columns[:, None, None, :])
    return padded[tuple(part.to(x.device) for part in index)]


def crop_and_flip(x: Tensor) -> Tensor:
    """Apply `crop`, then `random_flip`."""
    return random_flip(crop(x))


AUGMENTATIONS: dict[str, Transform | None] = {
    "none": None,
    "flip": random_flip,
    "crop": crop,
    "crop_flip": crop_and_flip,
}
