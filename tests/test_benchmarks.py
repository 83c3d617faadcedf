"""Streams hold the classes, labels and images they should, each once, whatever the seed."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mas.benchmarks import DATASETS, digits, split


def content(stream):
    return [[(x, int(y), int(t)) for x, y, t in (e.dataset[i] for i in range(len(e.dataset)))] for e in stream]


def original_class(x):
    """Find an image among scikit-learn's own digits."""
    images, labels = load_digits(return_X_y=True)
    return labels[np.flatnonzero((images == (x.flatten() * 16).numpy().round()).all(1))[0]]


@pytest.mark.parametrize("name", DATASETS)
def test_data_sets_are_disjoint_and_labelled_from_zero(name):
    train, test = DATASETS[name]()
    for part in (train, test):
        x, y = part.tensors
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert sorted(y.unique().tolist()) == list(range(len(y.unique())))
    rows = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_digits_are_scikit_learns_split_by_class():
    train, test = digits()
    assert (len(train), len(test)) == (1437, 360)
    assert train.tensors[0].shape[1:] == (1, 8, 8)
    assert (train.tensors[0].min(), train.tensors[0].max()) == (0, 1)
    assert test.tensors[1].bincount().min() >= 34
    assert all(original_class(x) == y for x, y in [test[i] for i in range(0, 360, 40)])


@pytest.mark.parametrize(
    ("scenario", "labels", "tasks"),
    [
        ("task", [{0, 1}] * 5, [{0}, {1}, {2}, {3}, {4}]),
        ("domain", [{0, 1}] * 5, [{0}] * 5),
        ("class", [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}], [{0}] * 5),
    ],
)
@pytest.mark.parametrize("stream", ["train", "test"])
def test_scenarios(scenario, labels, tasks, stream):
    experiences = content(getattr(split(scenario=scenario, class_order="fixed"), f"{stream}_stream"))
    assert [{y for _, y, _ in e} for e in experiences] == labels
    assert [{t for _, _, t in e} for e in experiences] == tasks
    for i, experience in enumerate(experiences):
        for x, y, _ in experience[::25]:
            assert original_class(x) == (y if scenario == "class" else 2 * i + y)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize(
    ("experiences", "sizes"), [(3, [4, 3, 3]), (4, [3, 3, 2, 2]), (7, [2, 2, 2, 1, 1, 1, 1]), (1, [10])]
)
def test_classes_that_do_not_divide_evenly_are_all_kept(scenario, experiences, sizes):
    benchmark = split(experiences=experiences, scenario=scenario)
    assert [len(e.classes_in_this_experience) for e in benchmark.train_stream] == sizes
    assert sum(len(e.dataset) for e in benchmark.train_stream) == 1437
    assert sum(len(e.dataset) for e in benchmark.test_stream) == 360
    if scenario != "class":
        assert all(
            set(e.classes_in_this_experience) == set(range(n))
            for e, n in zip(benchmark.train_stream, sizes, strict=True)
        )


def test_class_order_is_fixed_given_or_drawn_from_the_seed_alone():
    def order(**options):
        return [
            c for e in split(scenario="class", **options).train_stream for c in sorted(e.classes_in_this_experience)
        ]

    given = [3, 1, 4, 5, 9, 2, 6, 8, 7, 0]
    assert order(class_order="fixed") == list(range(10))
    assert order() == order(class_order="random", seed=0)
    assert order(class_order=given) == [1, 3, 4, 5, 2, 9, 6, 8, 0, 7]
    assert (
        order(class_order="random", seed=1)
        == order(class_order="random", seed=1)
        != order(class_order="random", seed=2)
    )


def test_no_global_random_state_is_touched():
    before, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    split(class_order="random", seed=3)
    split(validation=0.3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy).all()


def test_validation_is_held_out_of_the_training_data():
    def images(stream):
        return {x.numpy().tobytes() for e in content(stream) for x, _, _ in e}

    whole, held = split(), split(validation=0.2)
    train, validation = images(held.train_stream), images(held.test_stream)
    assert train | validation == images(whole.train_stream)
    assert not train & validation
    assert not (train | validation) & images(whole.test_stream)
    assert len(validation) == 288


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiences": 11}, "experiences is 11; digits has 10 classes, so give 1 to 10"),
        ({"experiences": 0}, "experiences is 0"),
        ({"dataset": "digit"}, "dataset is 'digit'; known are digits"),
        ({"scenario": "online"}, "scenario is 'online'; known are task, domain, class"),
        ({"class_order": [0, 1, 2]}, "class_order is"),
        ({"class_order": "sorted"}, "class_order is sorted"),
    ],
)
def test_wrong_use_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        split(**options)
