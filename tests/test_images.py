"""Images in memory: a batch at once is the same as one sample after another, wherever Avalanche takes them."""

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_classification_dataset
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ExperienceBalancedBuffer, ReservoirSamplingBuffer
from torch.utils.data import DataLoader, TensorDataset

from mas.benchmarks import Images, as_dataset, split
from mas.benchmarks.images import (
    AUGMENTATIONS,
    BatchedDataset,
    Sample,
    channel_statistics,
    collate,
    crop,
    keep_on_device,
    random_flip,
)
from mas.strategies import Naive


def images(n=10, channels=2, **options):
    draw = torch.Generator().manual_seed(n)
    pixels = torch.randint(256, (n, channels, 6, 5), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 3, **options)


def one_by_one(data):
    samples = [list(data[i]) for i in range(len(data))]
    return [torch.stack([torch.as_tensor(s[part]) for s in samples]) for part in range(3)]


def assert_equal(batch, expected):
    assert len(batch) == len(expected) == 3
    for a, b in zip(batch, expected, strict=True):
        assert torch.equal(a, b)


DATA = {
    "whole": lambda: as_dataset(images(), 4),
    "subset": lambda: as_dataset(images(), 4).subset([7, 1, 1, 3]),
    "subset of a subset": lambda: as_dataset(images()).subset([7, 1, 5, 3]).subset([2, 0]),
    "concatenated": lambda: concat_datasets([as_dataset(images(7), 1), as_dataset(images(5), 2).subset([4, 0])]),
    "added": lambda: (
        as_dataset(images(7), 1) + as_dataset(images(7, scale=(torch.zeros(2, 1, 1), torch.ones(2, 1, 1))))
    ),
    "slice": lambda: as_dataset(images(), 4)[2:5],
    "same images twice": lambda: as_dataset(images(), 1).concat(as_dataset(images(), 1)),
}


@pytest.mark.parametrize("name", DATA)
def test_a_batch_is_its_samples(name, monkeypatch):
    data = DATA[name]().eval()
    expected = one_by_one(data)
    assert_equal(data.batch(range(len(data))), expected)
    (batch,) = DataLoader(data, len(data), collate_fn=data.collate_fn)
    assert_equal(batch, expected)
    order = torch.randperm(len(data)).tolist()
    (shuffled,) = DataLoader(data, sampler=order, batch_size=len(data), collate_fn=data.collate_fn)
    assert_equal(shuffled, [part[order] for part in expected])
    with monkeypatch.context() as patch:
        patch.setattr(Sample, "_items", lambda self: pytest.fail("asked for one sample"))
        (default,) = DataLoader(data, len(data))  # torch's own collate function
    assert_equal(default, expected)
    assert list(data.targets) == expected[1].tolist()


@pytest.mark.parametrize("name", DATA)
def test_a_data_set_ends_and_counts_from_the_end(name):
    data = DATA[name]().eval()
    assert_equal([torch.stack([torch.as_tensor(s[i]) for s in data]) for i in range(3)], one_by_one(data))
    assert torch.equal(data[-1][0], data[len(data) - 1][0])
    for outside in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[outside]


def test_a_batch_of_several_data_sets_keeps_its_order():
    a, b = as_dataset(images(7), 1).eval(), as_dataset(images(5), 2).eval()
    mixed = [b[3], a[0], b[1], a[6], a[0]]
    assert_equal(collate(mixed), [torch.stack([torch.as_tensor(list(s)[part]) for s in mixed]) for part in range(3)])
    plain = [(torch.zeros(2, 6, 5), 1, 0), b[0]]
    assert torch.equal(collate(plain)[0][1], b[0][0])


def test_values_are_from_0_to_1_then_changed_then_standardised():
    mean, deviation = torch.tensor([0.25, 0.5])[:, None, None], torch.tensor([2.0, 4.0])[:, None, None]
    data = images(changes=(lambda x: x.flip(-1), lambda x: x + 1), scale=(mean, deviation))
    expected = (data.pixels.float().div(255).flip(-1) + 1 - mean) / deviation
    assert torch.allclose(data.batch(torch.arange(10)), expected)


def test_augmentation_is_for_training_alone():
    data = as_dataset(images(augment=lambda x: x + 100))
    assert data.train().batch([0])[0].min() >= 100
    assert data.eval().batch([0])[0].max() <= 1
    assert data.train().subset([3]).batch([0])[0].min() >= 100
    assert data.eval()[0][0].max() <= 1


def test_pixels_are_shared_between_subsets():
    whole = images()
    part = whole.subset(torch.tensor([3, 1]))
    assert part.pixels.data_ptr() == whole.pixels.data_ptr()
    assert torch.equal(part.batch(torch.tensor([0])), whole.batch(torch.tensor([3])))


def test_channel_statistics_are_those_of_all_pixels():
    data = images(5000)
    x = data.pixels.double().div(255).transpose(0, 1).flatten(1)
    mean, deviation = channel_statistics(data)
    assert torch.allclose(mean.flatten().double(), x.mean(1), atol=1e-6)
    assert torch.allclose(deviation.flatten().double(), x.std(1, correction=0), atol=1e-6)


def test_flip_mirrors_about_half_and_changes_no_other():
    torch.manual_seed(0)
    x = torch.rand(400, 2, 3, 4)
    y = random_flip(x)
    kept, mirrored = ((y == z).flatten(1).all(1) for z in (x, x.flip(-1)))
    assert (kept ^ mirrored).all()
    assert 150 < kept.sum() < 250


def test_crop_shifts_each_image_by_its_own_and_fills_with_zeros():
    torch.manual_seed(0)
    x = torch.rand(200, 2, 6, 5) + 1
    y, shifts = crop(x, margin=2), set()
    for image, found in zip(x, y, strict=True):
        padded = torch.nn.functional.pad(image, (2,) * 4)
        fits = [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[:, i : i + 6, j : j + 5], found)]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) == 25
    assert set(AUGMENTATIONS) == {"none", "flip", "crop", "crop_flip"}


def test_loading_in_worker_processes_gives_the_same():
    data = as_dataset(images(), 4).eval()
    found = list(DataLoader(data, 4, collate_fn=data.collate_fn, num_workers=1))
    assert_equal([torch.cat(parts) for parts in zip(*found, strict=True)], one_by_one(data))


def test_it_stays_itself_under_avalanches_operations():
    data = as_dataset(images())
    for other in (data.train(), data.subset([1]), data + data, concat_datasets([data, data]), data[1:3]):
        assert isinstance(other, BatchedDataset)
        assert isinstance(other, AvalancheDataset)
        assert other.collate_fn is collate


@pytest.mark.parametrize("group", ["train", "eval"])
def test_transforms_that_someone_adds_are_applied(group):
    data = as_dataset(images(), 4).with_transforms(group)
    doubled = data.replace_current_transform_group(lambda x: 2 * x)
    for changed in (doubled, doubled.freeze_transforms()):  # Avalanche's own subsets lose them
        x, y, task = changed.batch([3, 1])
        by_avalanche = [super(BatchedDataset, changed).__getitem__(i)[0] for i in (3, 1)]
        assert torch.equal(x, torch.stack(by_avalanche))
        assert (y.tolist(), task.tolist()) == ([0, 1], [4, 4])
    assert torch.equal(doubled.batch([3])[0][0], 2 * data[3][0])


def test_data_of_another_kind_beside_ours():
    other = TensorDataset(torch.randn(5, 2, 6, 5), torch.arange(5))
    other.targets = list(range(5))
    theirs = _make_taskaware_classification_dataset(other, task_labels=1)
    both = as_dataset(images(), 1).concat(theirs)
    x, y, task = both.eval().batch([2, 11, 0, 14])
    assert torch.equal(x[1], other[1][0])
    assert torch.equal(x[0], as_dataset(images(), 1).eval()[2][0])
    assert (y.tolist(), task.tolist()) == ([2, 1, 0, 4], [1, 1, 1, 1])


@pytest.mark.parametrize("build", [ClassBalancedBuffer, ExperienceBalancedBuffer, ReservoirSamplingBuffer])
def test_replay_buffers_of_every_kind(build):
    benchmark = split("digits", 5, scenario="class", class_order="fixed")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    plugin = ReplayPlugin(30, storage_policy=build(30))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.01),
        train_mb_size=64,
        plugins=[plugin],
        evaluator=EvaluationPlugin(),
    )
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience)
    x, y, _ = next(iter(DataLoader(plugin.storage_policy.buffer, 30, collate_fn=collate)))
    every = {tuple(s[0].flatten().tolist()): s[1] for e in benchmark.train_stream[:3] for s in e.dataset.eval()}
    assert len(x) == 30
    assert [every[tuple(image.flatten().tolist())] for image in x] == y.tolist()


def test_images_are_kept_on_the_device_where_they_fit():
    """The meta device stands for one with memory of its own."""
    benchmark = split("digits", 3)
    datasets = [e.dataset for stream in benchmark.streams.values() for e in stream]
    own = {id(p): p.nbytes for d in datasets for p in [d._flat_data._datasets[0].pixels]}
    size = sum(own.values())
    keep_on_device(benchmark, "meta", free=2 * size - 1)
    assert {d._flat_data._datasets[0].pixels.device.type for d in datasets} == {"cpu"}
    keep_on_device(benchmark, "meta", free=2 * size)
    found = [d._flat_data._datasets[0] for d in datasets]
    assert {image.pixels.device.type for image in found} == {"meta"}
    assert {image.scale[0].device.type for image in found} == {"meta"}
    assert len({id(image.pixels) for image in found}) == len(own)
    assert {image.labels.device.type for image in found} == {"cpu"}
