"""Names of experiences: short, readable, each once, for every stream."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets

from mas.benchmarks import (
    STREAMS,
    as_dataset,
    deficit_then_clear,
    digits,
    experience_names,
    fingerprint,
    instances,
    load_dataset,
    mixture,
    one_vs_rest,
    pairs,
    permuted,
    rotated,
    sequence,
    split,
    whole,
)
from mas.benchmarks.datasets import _load
from mas.benchmarks.deficits import blur
from mas.benchmarks.images import keep_on_device
from tests.data import make_folder

TWO_DIGITS = ["digits", {"name": "digits", "writers": "apart"}]


class TestNames:
    @pytest.mark.parametrize(
        ("make", "options", "expected"),
        [
            (split, {"class_order": "fixed"}, ["0+1", "2+3", "4+5", "6+7", "8+9"]),
            (split, {"class_order": [7, 2, 0, 1, 3, 4, 9, 8, 6, 5], "experiences": [2, 1, 3, 4]},
             ["2+7", "0", "1+3+4", "5+6+8+9"]),
            (split, {"class_order": "fixed", "experiences": 2, "scenario": "class"}, ["0–4", "5–9"]),
            (split, {"class_order": [0, 1, 2, 3, 5, 4, 6, 7, 8, 9], "experiences": 2},
             ["5 classes from 0", "5 classes from 4"]),
            (permuted, {"dataset": "digits", "experiences": 3}, ["plain", "permutation 1", "permutation 2"]),
            (permuted, {"dataset": "digits", "experiences": 2, "first": "permuted"},
             ["permutation 0", "permutation 1"]),
            (rotated, {"dataset": "digits"}, ["0°", "36°", "72°", "108°", "144°"]),
            (rotated, {"dataset": "digits", "experiences": 3, "angles": [0, 25.68, 25.71]},
             ["0°", "25.7°", "25.7° (2)"]),
            (instances, {"experiences": 2}, ["part 0", "part 1"]),
            (whole, {}, ["digits"]),
            (deficit_then_clear, {"deficit": "blur"}, ["blur", "clear"]),
            (deficit_then_clear, {"deficit": {"name": "noise"}}, ["noise", "clear"]),
            (deficit_then_clear, {"deficit": blur}, ["blur", "clear"]),
            (sequence, {"datasets": TWO_DIGITS}, ["digits", "digits (2)"]),
            (one_vs_rest, {}, list("0123456789")),
            (pairs, {}, [f"{a} or {b}" for a, b in combinations(range(10), 2)]),
            (mixture, {"datasets": ["digits"], "experiences": 1, "classes": 10, "changes": ["inverted"]},
             ["digits 0–9 inverted"]),
            (mixture, {"datasets": ["digits"], "experiences": 3, "classes": 10, "changes": ["plain"]},
             ["digits 0–9", "digits 0–9 (2)", "digits 0–9 (3)"]),
        ],
    )  # fmt: skip
    def test_they_say_what_is_shown(self, make, options, expected):
        assert experience_names(make(**options)) == expected

    @pytest.mark.parametrize("name", STREAMS)
    def test_every_stream_has_names_each_once(self, name):
        needed = {"sequence": {"datasets": TWO_DIGITS}, "mixture": {"datasets": TWO_DIGITS, "experiences": 40}}
        needed["deficit_then_clear"] = {"deficit": "flip"}
        options = {"dataset": "digits"} if name not in ("sequence", "mixture") else {}
        benchmark = STREAMS[name](**options, **needed.get(name, {}))
        names = experience_names(benchmark)
        assert len(names) == len(set(names)) == len(benchmark.train_stream)
        assert not any(found.startswith("experience") for found in names)

    def test_a_benchmark_of_another_origin_has_numbers(self):
        data = [as_dataset(part) for part in digits()]
        assert experience_names(benchmark_from_datasets(train=data, test=data)) == ["experience 0", "experience 1"]

    def test_they_stay_when_images_move_to_a_device(self):
        benchmark = pairs(experiences=2)
        before = experience_names(benchmark)
        keep_on_device(benchmark, "cpu", free=10**12)
        assert experience_names(benchmark) == before

    def test_data_sets_do_not_carry_the_names_of_a_stream(self):
        whole()
        assert all(images.name is None for images in load_dataset("digits"))


class TestClassNames:
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MAS_DATA", str(tmp_path))
        monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
        _load.cache_clear()
        self.root = tmp_path
        yield
        _load.cache_clear()

    def folder(self, *classes, apart=False):
        make_folder(self.root / "my.pets/animals", dict.fromkeys(classes, 5), apart=apart)
        return {"name": "image_folder", "path": "my.pets/animals", "size": 8}

    @pytest.mark.parametrize("apart", [False, True])
    def test_folders_name_the_classes(self, apart):
        spec = self.folder("emu", "cat", "dog", apart=apart)
        for images in load_dataset(spec):
            assert images.class_names == ("cat", "dog", "emu")
            assert images.subset(torch.tensor([0])).class_names == images.class_names
            assert replace(images, rows=images.rows).class_names == images.class_names
        assert experience_names(one_vs_rest(spec)) == ["cat", "dog", "emu"]
        assert experience_names(pairs(spec)) == ["cat or dog", "cat or emu", "dog or emu"]
        assert experience_names(split(spec, 2, class_order="fixed")) == ["cat+dog", "emu"]
        assert experience_names(whole(spec)) == ["animals"]

    def test_a_long_name_makes_all_of_them_numbers(self):
        spec = self.folder("cat", "dog", "n02123045-tabby")
        assert experience_names(one_vs_rest(spec)) == ["0", "1", "2"]

    def test_new_labels_have_no_names_of_old_ones(self):
        for experience in pairs(self.folder("cat", "dog", "emu")).train_stream:
            (images,) = experience.dataset._flat_data._datasets
            assert images.class_names is None


def test_names_do_not_change_fingerprints():
    assert fingerprint("digits").startswith("78874cc9b68188d4")
