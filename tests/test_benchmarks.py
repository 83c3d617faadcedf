"""Streams hold the classes, labels and images they should, each once, whatever the seed."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from mas.benchmarks import DataError, digits, instances, load_dataset, permuted, rotated, sequence, split
from mas.benchmarks.datasets import _load
from tests.data import REAL, forbid_writing, make_folder, mirror, real


def content(stream):
    return [[(x, int(y), int(t)) for x, y, t in (e.dataset[i] for i in range(len(e.dataset)))] for e in stream]


def original_class(x):
    """Find an image among scikit-learn's own digits."""
    images, labels = load_digits(return_X_y=True)
    return labels[np.flatnonzero((images == (x.flatten() * 16).numpy().round()).all(1))[0]]


def test_digits_are_scikit_learns_split_by_class():
    train, test = digits()
    assert (len(train), len(test)) == (1437, 360)
    x = test.batch(torch.arange(360))
    assert x.shape == (360, 1, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    assert test.labels.bincount().min() >= 34
    assert all(original_class(x[i]) == test.labels[i] for i in range(0, 360, 40))
    rows = torch.cat([train.batch(torch.arange(1437)), x]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797


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
    experiences = content(getattr(split(scenario=scenario, class_order="fixed", normalize=False), f"{stream}_stream"))
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

    whole, held = split(normalize=False), split(validation=0.2, normalize=False)
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
        ({"experiences": [3, 3]}, r"experiences is \[3, 3\]; the numbers must add up to the 10 classes of digits"),
        ({"augment": "twist"}, "augment is 'twist'; known are none, flip, crop, crop_flip"),
        (
            {"dataset": {"name": "digits", "size": 8}},
            "dataset digits has no option 'size'; it has: train, test, writers",
        ),
        (
            {"dataset": {"name": "flowers102", "size": 0}},
            "dataset flowers102: size is 0; Input should be greater than 0",
        ),
        ({"validation": 0.001}, "validation is 0.001; 1437 images need 0.007 to 0.993"),
    ],
)
def test_wrong_use_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        split(**options)


def images_of(stream):
    return [torch.stack([x for x, _, _ in part]) for part in content(stream)]


def test_uneven_splits_as_given():
    benchmark = split(experiences=[5, 1, 4], scenario="class", class_order="fixed")
    found = [sorted(e.classes_in_this_experience) for e in benchmark.train_stream]
    assert found == [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9]]


@pytest.mark.parametrize("make", [split, permuted, rotated, instances])
def test_streams_are_normalised_by_the_training_images_alone(make):
    benchmark = make("digits", experiences=2)
    train = torch.cat(images_of(benchmark.train_stream))
    if make in (split, instances):  # the others move pixels about, over the edge too
        assert train.mean().item() == pytest.approx(0, abs=1e-5)
        assert train.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    plain = torch.cat(images_of(make("digits", experiences=2, normalize=False).test_stream))
    raw = torch.cat([p.batch(torch.arange(len(p))) for p in digits()[:1]])
    expected = (plain - raw.mean()) / raw.std(correction=0)
    assert torch.allclose(torch.cat(images_of(benchmark.test_stream)), expected, atol=1e-4)


class TestPermuted:
    def test_every_experience_has_all_images_with_pixels_in_one_other_order(self):
        first, second, third = images_of(permuted("digits", experiences=3, normalize=False).train_stream)
        raw = digits()[0].batch(torch.arange(1437))
        assert torch.equal(first, raw)
        orders = []
        for shown in (second, third):
            columns = {tuple(c.tolist()): i for i, c in enumerate(raw.flatten(1).T)}
            orders.append([columns[tuple(c.tolist())] for c in shown.flatten(1).T])  # each pixel's column of values
        assert orders[0] != orders[1]
        assert all(len(set(order)) == len(columns) for order in orders)

    def test_train_and_test_and_equal_seeds_have_the_same_permutation(self):
        one, same, other = (permuted("digits", experiences=2, seed=s, first="permuted") for s in (1, 1, 2))
        for a, b in zip(images_of(one.test_stream), images_of(same.test_stream), strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(images_of(one.test_stream)[0], images_of(other.test_stream)[0])
        order = one.train_stream[1].dataset._flat_data._datasets[0].changes[0].order
        assert torch.equal(order, one.test_stream[1].dataset._flat_data._datasets[0].changes[0].order)

    @pytest.mark.parametrize(
        ("scenario", "classes", "tasks"), [("domain", 10, [0, 0]), ("task", 10, [0, 1]), ("class", 20, [0, 0])]
    )
    def test_scenarios(self, scenario, classes, tasks):
        stream = permuted("digits", experiences=2, scenario=scenario).train_stream
        assert len(set.union(*(set(e.classes_in_this_experience) for e in stream))) == classes
        assert [next(iter(e.task_labels)) for e in stream] == tasks


class TestRotated:
    def test_a_quarter_turn_moves_each_pixel_where_it_should(self):
        plain, turned = images_of(rotated("digits", experiences=2, angles=[0, 90], normalize=False).test_stream)
        assert torch.allclose(turned, plain.rot90(1, (2, 3)), atol=1e-5)

    def test_even_angles_begin_upright_and_random_ones_are_the_seeds(self):
        def angles(**options):
            stream = rotated("digits", experiences=4, **options).train_stream
            return [e.dataset._flat_data._datasets[0].changes[0].degrees for e in stream]

        assert angles() == [0, 45, 90, 135]
        assert angles(angles="random", seed=1) == angles(angles="random", seed=1) != angles(angles="random", seed=2)
        with pytest.raises(ValueError, match="give 'even', 'random' or a list of 4 degrees"):
            angles(angles=[0, 1])


def test_instances_show_every_image_once_and_all_classes_each_time():
    benchmark = instances("digits", experiences=5, seed=1, normalize=False)
    parts = images_of(benchmark.train_stream)
    assert len(torch.cat(parts).flatten(1).unique(dim=0)) == 1437
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for e in benchmark.train_stream:
        assert set(e.classes_in_this_experience) == set(range(10))
    assert all(e.task_labels == [0] for e in benchmark.train_stream)
    other = images_of(instances("digits", experiences=5, seed=2, normalize=False).train_stream)
    assert not torch.equal(parts[0][:50], other[0][:50])


def test_sequence_gives_each_data_set_its_own_task(tmp_path, monkeypatch):
    monkeypatch.setenv("MAS_DATA", str(tmp_path))
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
    make_folder(tmp_path / "pets", {"cat": 6, "dog": 6, "emu": 6}, apart=False)
    stream = sequence(["digits", {"name": "image_folder", "path": "pets", "size": 10}], size=12).train_stream
    assert [list(e.task_labels) for e in stream] == [[0], [1]]
    assert [len(e.classes_in_this_experience) for e in stream] == [10, 3]
    assert {e.dataset[0][0].shape for e in stream} == {(3, 12, 12)}
    with pytest.raises(ValueError, match="give size to bring them to one"):
        sequence(["digits", {"name": "image_folder", "path": "pets", "size": 10}])


class TestImageFolder:
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MAS_DATA", str(tmp_path))
        monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
        self.root = tmp_path

    def load(self, **options):
        _load.cache_clear()
        return load_dataset({"name": "image_folder", "size": 8, **options})

    def colours(self, images):
        x = images.pixels[images.rows]
        assert (x.dtype, x.shape[1:]) == (torch.uint8, (3, 8, 8))
        return sorted(zip(images.labels.tolist(), x[:, 0, 4, 4].tolist(), x[:, 1, 4, 4].tolist(), strict=True))

    @pytest.mark.parametrize("zipped", [False, True])
    def test_train_and_test_folders(self, zipped):
        folder = make_folder(self.root / "a", {"x": 3, "y": 2})
        path = shutil.make_archive(str(folder), "zip", folder) if zipped else "a"
        for images in self.load(path=path):
            assert self.colours(images) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 40, 0), (1, 40, 1)]

    def test_train_and_test_folders_in_a_folder_of_the_zips_own_name(self):
        make_folder(self.root / "a", {"x": 3, "y": 2})
        path = shutil.make_archive(str(self.root / "a"), "zip", self.root, "a")
        train, test = self.load(path=path)
        assert self.colours(train) == self.colours(test) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 40, 0), (1, 40, 1)]

    def test_test_images_in_another_folder(self):
        make_folder(self.root / "a", {"x": 3, "y": 2}, apart=False)
        make_folder(self.root / "b", {"x": 1, "y": 1}, apart=False, shade=100)
        train, test = self.load(path="a", test="b")
        assert len(train) == 5
        assert self.colours(test) == [(0, 0, 100), (1, 40, 100)]

    def test_a_split_file(self):
        make_folder(self.root / "a", {"x": 2, "y": 2}, apart=False)
        (self.root / "s.txt").write_text("x/000.png train\nx/001.png test\ny/001.png train\ny/000.png test\n")
        train, test = self.load(path="a", split_file="s.txt")
        assert self.colours(train) == [(0, 0, 0), (1, 40, 1)]
        assert self.colours(test) == [(0, 0, 1), (1, 40, 0)]
        (self.root / "s.txt").write_text("x/000.png train\nx/009.png test\n")
        with pytest.raises(DataError, match=r"s.txt:2: found 'x/009.png test'; each line is"):
            self.load(path="a", split_file="s.txt")

    def test_a_seeded_split_by_class(self):
        make_folder(self.root / "a", {"x": 10, "y": 20}, apart=False)
        train, test = self.load(path="a", test_share=0.2)
        assert test.labels.bincount().tolist() == [2, 4]
        assert sorted(self.colours(train) + self.colours(test)) == sorted(
            [(0, 0, i) for i in range(10)] + [(1, 40, i) for i in range(20)]
        )
        assert self.colours(self.load(path="a", test_share=0.2)[1]) == self.colours(test)

    def test_another_root_has_other_data(self, tmp_path_factory, monkeypatch):
        make_folder(self.root / "a", {"x": 2, "y": 2})
        other = tmp_path_factory.mktemp("other")
        make_folder(other / "a", {"x": 3, "y": 3})
        spec = {"name": "image_folder", "path": "a", "size": 8}
        assert len(load_dataset(spec)[0]) == 4
        monkeypatch.setenv("MAS_DATA", str(other))
        assert len(load_dataset(spec)[0]) == 6

    def test_a_changed_file_is_read_anew(self):
        folder = make_folder(self.root / "a", {"x": 2, "y": 2})
        self.load(path="a")
        Image.new("RGB", (9, 7), (1, 99, 1)).save(folder / "train/x/000.png")
        assert (0, 1, 99) in self.colours(self.load(path="a")[0])

    def test_a_folder_that_cannot_be_written_works(self):
        folder = make_folder(self.root / "a", {"x": 2, "y": 2})
        for part in (folder, *folder.rglob("*")):
            part.chmod(0o555)
        assert len(self.load(path="a")[0]) == 4
        for part in (folder, *folder.rglob("*")):
            part.chmod(0o755)

    @pytest.mark.parametrize(
        ("break_it", "message"),
        [
            (lambda root: shutil.rmtree(root / "a"), "a: not in .*; give another path, or set MAS_DATA or --data"),
            (lambda root: shutil.rmtree(root / "a/test/y"), "2 classes in train and 1 in test; 'y' is in only"),
            (lambda root: (root / "a/train/x/000.png").write_bytes(b"no image"), "000.png: is no readable image"),
            (lambda root: (root / "a/train/x/000.png").write_bytes((root / "a/train/x/001.png").read_bytes()[:40]),
             "000.png: is no readable image"),
            (lambda root: [p.unlink() for p in root.rglob("*.png")], "holds no images as <class>/<file>"),
        ],
    )  # fmt: skip
    def test_broken_folders_are_one_clear_line(self, break_it, message):
        make_folder(self.root / "a", {"x": 2, "y": 2})
        break_it(self.root)
        with pytest.raises(DataError, match=message) as error:
            self.load(path="a")
        assert len(str(error.value).splitlines()) == 1

    def test_a_damaged_zip_is_one_clear_line(self):
        make_folder(self.root / "a", {"x": 2, "y": 2})
        archive = self.root / "a.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
            for image in sorted((self.root / "a").rglob("*.png")):
                file.write(image, image.relative_to(self.root / "a").as_posix())
        whole = archive.read_bytes()
        archive.write_bytes(whole.replace(b"IDAT", b"JDAT", 1))
        with pytest.raises(DataError, match=r"a.zip: is damaged at test/x/000.png \(Bad CRC-32.*; fetch it again"):
            self.load(path="a.zip")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split_file": "folder"}, "folder: is no text file .*each line is <class>/<file> train"),
            ({"split_file": "binary"}, "binary: is no text file .*each line is <class>/<file> train"),
            ({"test_share": 0.9999}, "test_share is 0.9999; 4 images need 0.500 to 0.500"),
        ],
    )
    def test_wrong_ways_to_divide_are_one_clear_line(self, options, message):
        make_folder(self.root / "a", {"x": 2, "y": 2}, apart=False)
        (self.root / "folder").mkdir()
        (self.root / "binary").write_bytes(bytes(range(128, 256)))
        with pytest.raises(ValueError, match=message):
            self.load(path="a", **options)

    def test_one_image_of_a_class_cannot_be_divided(self):
        make_folder(self.root / "a", {"x": 2, "y": 1}, apart=False)
        with pytest.raises(ValueError, match="test_share needs two images of each class; a class has one"):
            self.load(path="a")


@real
class TestRealData:
    @pytest.fixture(autouse=True)
    def _root(self, real_data, tmp_path_factory, monkeypatch):
        monkeypatch.setenv("MAS_DATA", str(real_data))
        monkeypatch.setenv("MAS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        _load.cache_clear()
        yield
        _load.cache_clear()

    @pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion_mnist", 0.2860)])
    @pytest.mark.parametrize("writable", [True, False])
    def test_idx_archives(self, name, mean, writable, tmp_path, monkeypatch):
        root = mirror(REAL, tmp_path / "data", "*.gz")
        monkeypatch.setenv("MAS_DATA", str(root if writable else forbid_writing(root)))
        monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
        train, test = load_dataset(name)
        assert (len(train), len(test)) == (60000, 10000)
        assert train.pixels.shape[1:] == (1, 28, 28)
        assert (train.pixels.float().mean() / 255).item() == pytest.approx(mean, abs=1e-4)
        assert test.labels.bincount().tolist()[0] == (980 if name == "mnist" else 1000)
        unpacked = list(root.rglob("*-ubyte"))
        assert bool(unpacked) == writable

    @pytest.mark.slow
    def test_cifar10_as_jpeg(self):
        train, test = load_dataset({"name": "image_folder", "path": "cifar10-jpeg/cifar10-jpeg.zip", "size": 32})
        assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([5000] * 10, [1000] * 10)
        assert (train.pixels[:5000].float().mean() / 255).item() == pytest.approx(0.55, abs=0.03)  # aeroplanes: sky

    def test_a_truncated_archive_is_one_clear_line(self, tmp_path, monkeypatch):
        file = mirror(REAL, tmp_path, "*.gz") / "MNIST/raw/train-images-idx3-ubyte.gz"
        start = file.read_bytes()[:1000]
        file.unlink()  # it is a link to the whole archive
        file.write_bytes(start)
        monkeypatch.setenv("MAS_DATA", str(tmp_path))
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["file:///nowhere/"])
        with pytest.raises(DataError, match=r"MNIST: not found or not whole in .*, and downloading it failed") as error:
            load_dataset("mnist")
        assert len(str(error.value).splitlines()) == 1
