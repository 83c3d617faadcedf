"""Streams of many small tasks: labels, balance and draws."""

from collections import Counter
from functools import cache
from itertools import combinations

import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from mas.benchmarks import Images, digits, experience_names, mixture, one_vs_rest, pairs
from mas.benchmarks.datasets import _load
from mas.experiments import run
from tests.data import make_folder, real

TWO_DIGITS = ["digits", {"name": "digits", "writers": "apart"}]
TASK_STREAMS = [
    (one_vs_rest, {}),
    (one_vs_rest, {"balanced": False}),
    (pairs, {"experiences": 7}),
    (mixture, {"datasets": ["digits"], "experiences": 8}),
    (mixture, {"datasets": ["digits"], "experiences": 8, "train": 30, "test": 12, "scenario": "domain"}),
]


def shown(experience):
    """Return images and labels of an experience, as in evaluation."""
    data = experience.dataset.eval()
    x, y, *_ = data.batch(range(len(data)))
    return x, y


@cache
def originals():
    """Return the class of each of scikit-learn's digits, by its grey values."""
    images, labels = load_digits(return_X_y=True)
    return dict(zip(map(tuple, images.astype(int).tolist()), labels.tolist(), strict=True))


def classes_of(x):
    """Return the class of each image among scikit-learn's digits."""
    grey = (16 * x.flatten(1)).round().int().tolist()
    return torch.tensor([originals()[tuple(image)] for image in grey])


def of_split(stream, side):
    return [shown(experience) for experience in getattr(stream, f"{side}_stream")]


def rows(experience):
    """Return which images of the data set an experience shows."""
    (images,) = experience.dataset._flat_data._datasets
    return set(images.rows.tolist())


class TestOneVsRest:
    @pytest.mark.parametrize("side", ["train", "test"])
    def test_a_class_against_as_many_of_the_others_evenly(self, side):
        stream = one_vs_rest(normalize=False)
        counts = digits()[side == "test"].labels.bincount()
        experiences = of_split(stream, side)
        assert len(experiences) == 10
        for own, (x, y) in enumerate(experiences):
            original = classes_of(x)
            assert torch.equal(y, (original == own).long())
            assert int(y.sum()) == counts[own]
            rest = original[y == 0].bincount(minlength=10)
            others = torch.cat([rest[:own], rest[own + 1 :]])
            assert int(others.sum()) == counts[own]
            assert int(others.max() - others.min()) <= 1

    def test_without_balance_every_image_is_shown(self):
        for own, (x, y) in enumerate(of_split(one_vs_rest(balanced=False, normalize=False), "test")):
            assert len(x) == 360
            assert torch.equal(y, (digits()[1].labels == own).long())

    def test_it_is_a_domain_scenario(self):
        for experience in one_vs_rest().train_stream:
            assert experience.task_labels == [0]
            assert set(experience.classes_in_this_experience) == {0, 1}

    def test_where_the_rest_is_smaller_all_of_it_is_shown(self, monkeypatch):
        labels = torch.tensor([0] * 9 + [1] * 3 + [2])
        images = Images(torch.rand(13, 1, 2, 2), labels)
        monkeypatch.setattr("mas.benchmarks.building.load_dataset", lambda spec: (images, images))
        counts = [y.bincount().tolist() for _, y in of_split(one_vs_rest("few"), "train")]
        assert counts == [[4, 9], [3, 3], [1, 1]]
        (_, _), (x, y), _ = of_split(one_vs_rest("few", normalize=False), "train")
        original = torch.tensor([int((images.pixels == image).flatten(1).all(1).nonzero()) for image in x])
        assert sorted(labels[original[y == 0]].tolist()) == [0, 0, 2]  # class 2 has one image, class 0 fills up

    def test_one_class_is_one_clear_error(self, monkeypatch):
        images = Images(torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64))
        monkeypatch.setattr("mas.benchmarks.building.load_dataset", lambda spec: (images, images))
        with pytest.raises(ValueError, match="one_vs_rest needs two classes; digits has 1"):
            one_vs_rest()


class TestPairs:
    def test_each_pair_once_in_lexicographic_order(self):
        stream = pairs(normalize=False)
        expected = list(combinations(range(10), 2))
        counts = digits()[0].labels.bincount()
        assert len(stream.train_stream) == 45
        for (first, second), experience in zip(expected, stream.train_stream, strict=True):
            x, y = shown(experience)
            assert y.bincount().tolist() == [counts[first], counts[second]]
            assert torch.equal(classes_of(x), torch.tensor([first, second])[y])

    @pytest.mark.parametrize(("scenario", "tasks"), [("task", [0, 1, 2]), ("domain", [0, 0, 0])])
    def test_scenarios(self, scenario, tasks):
        stream = pairs(experiences=3, scenario=scenario)
        assert [experience.task_labels[0] for experience in stream.test_stream] == tasks

    def test_some_pairs_are_drawn_from_the_seed(self):
        first, again, other = (experience_names(pairs(experiences=6, seed=seed)) for seed in (1, 1, 2))
        assert first == again != other
        assert len(set(first)) == 6
        assert first == sorted(first)
        assert experience_names(pairs(experiences=45, seed=3)) == experience_names(pairs())


def tasks_of(stream):
    """Return each experience's classes, by what it shows."""
    return [frozenset(classes_of(x).tolist()) for x, _ in of_split(stream, "test")]


class TestMixture:
    def test_no_class_comes_twice_while_there_are_others(self):
        for seed in range(5):
            drawn = tasks_of(mixture(["digits"], 7, classes=3, changes=["plain"], normalize=False, seed=seed))
            assert all(len(own) == 3 for own in drawn)
            first, second, third = drawn[:3]
            assert len(first | second | third) == 9
            assert set(range(10)) - (first | second | third) <= drawn[3]  # the last one left comes next
            often = Counter(label for own in drawn for label in own)
            assert max(often.values()) - min(often[label] for label in range(10)) <= 2

    def test_images_are_those_of_the_classes_under_the_change(self):
        stream = mixture(["digits"], 24, normalize=False, seed=1)
        _, test = digits()
        found = Counter()
        for name, experience in zip(experience_names(stream), stream.test_stream, strict=True):
            _, numbers, *change = name.split(" (")[0].split(" ")
            own = [int(number) for number in numbers.split("+")]
            kept = [i for i in range(360) if test.labels[i] in own]
            plain = test.batch(torch.tensor(kept))
            x, y = shown(experience)
            assert y.tolist() == [own.index(test.labels[i]) for i in kept]
            found[change[0] if change else "plain"] += 1
            if not change:
                assert torch.equal(x, plain)
            elif change[0] == "inverted":
                assert torch.equal(x, 1 - plain)
            elif change[0] == "rotated":
                degrees = int(change[1].rstrip("°"))
                assert 30 <= degrees <= 180
                assert torch.equal(x, rotate(plain, degrees, InterpolationMode.BILINEAR))
            else:
                columns = sorted(map(tuple, plain.flatten(1).T.tolist()))
                assert sorted(map(tuple, x.flatten(1).T.tolist())) == columns
                assert not torch.equal(x, plain)
        assert set(found) == {"plain", "inverted", "rotated", "permuted"}

    def test_train_and_test_are_changed_alike(self):
        stream = mixture(["digits"], 6, changes=["permuted", "rotated"])
        for train, test in zip(stream.train_stream, stream.test_stream, strict=True):
            first, second = (e.dataset._flat_data._datasets[0].changes[-1] for e in (train, test))
            assert first is second

    def test_each_data_set_is_normalised_also_when_inverted(self):
        stream = mixture(TWO_DIGITS, 6, classes=10, changes=["inverted", "plain"])
        for x, _ in of_split(stream, "train"):
            assert x.mean().item() == pytest.approx(0, abs=1e-5)
            assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)

    def test_numbers_of_images_are_even_over_the_classes(self):
        stream = mixture(["digits"], 4, classes=3, train=31, test=12)
        for side, expected in (("train", [10, 10, 11]), ("test", [4, 4, 4])):
            for _, y in of_split(stream, side):
                assert sorted(y.bincount().tolist()) == expected

    @pytest.mark.parametrize(
        ("scenario", "labels", "tasks"),
        [
            ("task", [{0, 1}, {0, 1}, {0, 1}], [0, 1, 2]),
            ("domain", [{0, 1}, {0, 1}, {0, 1}], [0, 0, 0]),
            ("class", [{0, 1}, {2, 3}, {4, 5}], [0, 0, 0]),
        ],
    )
    def test_scenarios(self, scenario, labels, tasks):
        stream = mixture(["digits"], 3, scenario=scenario)
        assert [set(y.tolist()) for _, y in of_split(stream, "train")] == labels
        assert [experience.task_labels[0] for experience in stream.train_stream] == tasks

    def test_a_longer_stream_begins_as_a_shorter_one(self):
        short = mixture(TWO_DIGITS, 4, train=20, seed=5)
        long = mixture(TWO_DIGITS, 9, train=20, seed=5)
        for (x, y), (also_x, also_y) in zip(of_split(short, "train"), of_split(long, "train"), strict=False):
            assert torch.equal(x, also_x)
            assert torch.equal(y, also_y)

    def test_size_and_number_of_images_do_not_change_the_tasks(self):
        usual = experience_names(mixture(["digits"], 10))
        assert experience_names(mixture(["digits"], 10, size=12, train=20, scenario="domain")) == usual

    def test_sizes_and_channels_are_brought_together(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MAS_DATA", str(tmp_path))
        monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
        make_folder(tmp_path / "pets", {"cat": 6, "dog": 6, "emu": 6}, apart=False)
        pets = {"name": "image_folder", "path": "pets", "size": 10}
        stream = mixture(["digits", pets], 8, size=12)
        assert {shown(e)[0].shape[1:] for e in stream.train_stream} == {(3, 12, 12)}
        starts = {name.split(" ")[0] for name in experience_names(stream)}
        assert starts == {"digits", "pets"}
        with pytest.raises(ValueError, match=r"have the shapes .*; give size to bring them to one"):
            mixture(["digits", pets])


@pytest.mark.parametrize(("make", "options"), TASK_STREAMS)
class TestAll:
    @pytest.mark.parametrize("validation", [0.0, 0.2])
    def test_no_image_is_in_training_and_test(self, make, options, validation):
        stream = make(**options, validation=validation)
        train = set().union(*map(rows, stream.train_stream))
        test = set().union(*map(rows, stream.test_stream))
        assert train
        assert test
        assert not train & test
        own = digits()[0 if validation else 1]  # all digits share their pixels
        assert test <= set(own.rows.tolist())

    def test_the_seed_alone_counts(self, make, options):
        state = torch.get_rng_state()
        first = make(**options, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(99)
        again = make(**options, seed=3)
        other = make(**options, seed=4)
        assert experience_names(first) == experience_names(again)
        differs = False
        for side in ("train", "test"):
            for (x, y), (same_x, same_y) in zip(of_split(first, side), of_split(again, side), strict=True):
                assert torch.equal(x, same_x)
                assert torch.equal(y, same_y)
            for (x, _), (other_x, _) in zip(of_split(first, side), of_split(other, side), strict=True):
                differs = differs or not torch.equal(x, other_x)
        assert differs == (options != {"balanced": False})  # there is nothing to draw


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (pairs, {"experiences": 46}, "experiences is 46; digits has 45 pairs of classes, so give 1 to 45"),
        (pairs, {"experiences": 0}, "experiences is 0; digits has 45"),
        (pairs, {"scenario": "class"}, "scenario is 'class'; known are task, domain"),
        (one_vs_rest, {"augment": "twist"}, "augment is 'twist'; known are none"),
        (mixture, {"classes": 11}, "classes is 11; digits has 10 classes, so give 1 to 10"),
        (mixture, {"changes": ["plain", "blurred"]}, "changes is 'blurred'; known are plain, rotated, permuted, inv"),
        (mixture, {"train": 1000}, "train is 1000; 2 classes of digits may have 281 images, so give 2 to 281"),
        (mixture, {"test": 1}, "test is 1; 2 classes of digits may have 70 images, so give 2 to 70"),
        (mixture, {"scenario": "online"}, "scenario is 'online'; known are task, domain, class"),
    ],
)
def test_wrong_use_is_one_clear_error(make, options, message):
    needed = {"datasets": ["digits"]} if make is mixture else {}
    with pytest.raises(ValueError, match=message) as error:
        make(**needed, **options)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "benchmark",
    [
        {"stream": "one_vs_rest"},
        {"stream": "pairs", "experiences": 3},
        {"stream": "mixture", "datasets": TWO_DIGITS, "experiences": 3, "changes": ["rotated"], "train": 40},
    ],
)
def test_they_run_from_a_config(benchmark, tmp_path):
    config = {
        "experiment": "forgetting",
        "benchmark": benchmark,
        "model": {"name": "mlp", "hidden": [4]},
        "training": {"epochs": 1, "batch_size": 64},
        "strategies": [{"name": "naive"}],
        "seeds": 1,
    }
    done = run(config, output=tmp_path / "run", workers=1)
    assert not done.failed
    assert done.results["accuracy"].between(0, 1).all()


@real
def test_real_data_sets_are_mixed(real_data, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAS_DATA", str(real_data))
    monkeypatch.setenv("MAS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    _load.cache_clear()
    stream = mixture(["mnist", "fashion_mnist", "digits"], 12, train=100, test=50, size=28)
    assert {name.split(" ")[0] for name in experience_names(stream)} == {"mnist", "fashion_mnist", "digits"}
    for x, y in of_split(stream, "train"):
        assert x.shape == (100, 1, 28, 28)
        assert y.bincount().tolist() == [50, 50]
    _load.cache_clear()
