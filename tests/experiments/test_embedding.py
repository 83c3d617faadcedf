"""Cells that embed tasks: which images, by which network, and the probe networks that are kept in the cache."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mas
from mas.benchmarks import Images, experience_names
from mas.benchmarks.building import make_benchmark
from mas.experiments import load_embeddings, probe_network
from mas.experiments.build import draw_stream
from mas.experiments.config.embedding import EmbeddingOptions, ProbeNetwork
from mas.experiments.embedding import embed_cell, experiences_of, task_batches
from mas.experiments.embedding_file import EmbeddedTask, embeddings_as_npz
from mas.experiments.errors import UserError
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord
from mas.experiments.seeds import stream_seed
from mas.experiments.training import train_cell
from mas.task2vec import distance_matrix

ROOT = Path(__file__).parents[2]
DATA = {"name": "digits", "train": 200, "test": 100}
PROBE: dict[str, Any] = {
    "benchmark": {"stream": "whole", "dataset": DATA},
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "batch_size": 20},
}
SMALL = {
    "experiment": "task_map",
    "streams": [{"stream": "pairs", "dataset": DATA, "experiences": 3, "label": "pairs"}],
    "probe_network": PROBE,
    "embedding": {"labels": "exact", "parts": 2},
    "seeds": 2,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "probe_networks"


def cells_of(**changes):
    return Plan(load_config(SMALL | changes, try_data=False)).every_cell()


def pairs_stream():
    return draw_stream(cells_of()[0].settings.benchmark, 0)


def stream_without_names(images, labels):
    """Return an experience of images and labels."""
    own = Images(images, labels)
    return make_benchmark([(own, own)], ["a"], tasks=False).train_stream[0]


def chosen(options, seed, *, number=0, count=60):
    """Return the numbers of the images that are embedded: image n has the pixel n."""
    labels = torch.arange(count) % 3
    images = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)
    batches = task_batches(
        stream_without_names(images, labels), EmbeddingOptions(**options), (1, 1, 1), seed=seed, number=number
    )
    for x, y in batches:
        assert torch.equal(x.flatten().long() % 3, y)
        assert len(y) <= options.get("batch_size", 128)
    return [int(pixel) for x, _ in batches for pixel in x.flatten()]


class TestImages:
    """Which images of an experience are embedded."""

    def test_all_of_them_in_their_order_by_default(self):
        assert chosen({}, 0) == list(range(60))
        assert chosen({"batch_size": 7}, 5) == list(range(60))

    @pytest.mark.parametrize("parts", [2, 3, 7])
    def test_parts_are_disjoint_and_complete(self, parts):
        found = [chosen({"parts": parts}, seed) for seed in range(parts)]
        assert sorted(image for part in found for image in part) == list(range(60))
        assert max(map(len, found)) - min(map(len, found)) <= 3  # one of each class
        assert chosen({"parts": parts}, parts) == found[0]

    def test_parts_have_as_many_images_of_each_class(self):
        counts = torch.tensor(chosen({"parts": 2}, 1)).remainder(3).bincount()
        assert counts.tolist() == [10, 10, 10]

    def test_each_experience_is_dealt_out_anew(self):
        assert chosen({"parts": 2}, 0, number=0) != chosen({"parts": 2}, 0, number=1)

    def test_so_many_of_each_class_another_draw_for_each_seed(self):
        first, second = (chosen({"per_class": 4}, seed) for seed in (0, 1))
        for images in (first, second):
            assert torch.tensor(images).remainder(3).bincount().tolist() == [4, 4, 4]
            assert images == sorted(set(images))
        assert first != second
        assert chosen({"per_class": 4}, 0) == first

    def test_of_each_class_of_a_part(self):
        part = chosen({"parts": 2}, 1)
        few = chosen({"parts": 2, "per_class": 4}, 1)
        assert len(few) == 12
        assert set(few) < set(part)
        assert chosen({"parts": 2, "per_class": 1000}, 1) == part

    @pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (1, 16), (3, 4)])
    def test_images_are_brought_to_the_shape_that_the_network_takes(self, channels, size):
        images = torch.rand(6, 3, 8, 8)
        experience = stream_without_names(images, torch.arange(6) % 2)
        [(x, _)] = task_batches(experience, EmbeddingOptions(), (channels, size, size), seed=0)
        assert x.shape == (6, channels, size, size)
        own = experience.dataset.eval()
        expected = torch.stack([own[n][0] for n in range(6)])
        if size != 8:
            expected = nn.functional.interpolate(expected, [size, size], mode="bilinear", antialias=True)
        if channels == 1:
            expected = expected.sum(1, keepdim=True) / 3
        assert torch.allclose(x, expected, atol=1e-6)

    def test_a_grey_image_has_its_value_in_each_channel(self):
        experience = stream_without_names(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)
        [(x, _)] = task_batches(experience, EmbeddingOptions(), (3, 8, 8), seed=0)
        assert torch.equal(x[:, 0], x[:, 1])
        assert torch.equal(x[:, 0], experience.dataset.eval()[0][0].new_tensor(x[:, 2].tolist()))


class TestCells:
    """What a cell leaves."""

    @pytest.mark.parametrize("labels", ["exact", "hutchinson"])
    @pytest.mark.parametrize("data", ["train", "test"])
    def test_embeddings_are_those_of_embed_on_the_same_images(self, labels, data):
        cell = next(c for c in cells_of(embedding={"labels": labels, "parts": 2, "data": data}) if c.seed == 1)
        outcome = embed_cell(cell).outcome
        settings, benchmark = cell.settings, pairs_stream()
        model, shape, accuracy = probe_network.probe_network(settings.probe_network, ())
        experiences = experiences_of(benchmark, data)
        for number, (experience, own) in enumerate(zip(experiences, outcome.embeddings, strict=True)):
            batches = task_batches(experience, settings.embedding, shape, seed=1, number=number)
            generator = torch.Generator().manual_seed(stream_seed(1, "embedding", number))
            by_hand = mas.embed(model, batches, labels=labels, generator=generator)
            assert torch.equal(own.embedding().vector, by_hand.vector)
            assert torch.equal(own.embedding().scale, by_hand.scale)
            assert own.head_loss == by_hand.head_loss
            assert own.samples == by_hand.samples
        assert [own.task for own in outcome.embeddings] == experience_names(benchmark)
        assert outcome.probe_accuracy == accuracy

    def test_options_reach_embed(self):
        options = {"labels": "variational", "steps": 3, "beta": 1e-4, "weight_decay": 0.5, "per_class": 5}
        cell = cells_of(embedding=options, seeds=1)[0]
        own = embed_cell(cell).outcome.embeddings[0]
        model, shape, _ = probe_network.probe_network(cell.settings.probe_network, ())
        batches = task_batches(pairs_stream().train_stream[0], cell.settings.embedding, shape, seed=0)
        by_hand = mas.embed(
            model,
            batches,
            labels="variational",
            steps=3,
            beta=1e-4,
            weight_decay=0.5,
            generator=torch.Generator().manual_seed(stream_seed(0, "embedding", 0)),
        )
        assert torch.equal(own.embedding().vector, by_hand.vector)
        assert own.samples == 10

    def test_the_record_is_read_as_it_was_written(self):
        cell = cells_of()[0]
        record = CellRecord(cell, embed_cell(cell).outcome)
        again = CellRecord.from_json(record.to_json())
        assert again == record
        assert again.outcome.probe_accuracy is not None

    def test_a_blow_up_is_diverged_law_11(self, monkeypatch):
        def broken(*args, **kwargs):
            raise FloatingPointError("moment is nan")

        monkeypatch.setattr("mas.experiments.embedding.embed", broken)
        outcome = embed_cell(cells_of()[0]).outcome
        assert (outcome.status, outcome.reason, outcome.embeddings) == ("diverged", "moment is nan", [])

    def test_only_settings_of_an_embedding(self):
        cell = cells_of()[0]
        own = cell.settings.probe_network
        training = probe_network.training_settings(own, own.training)
        with pytest.raises(TypeError, match="embeds nothing"):
            embed_cell(replace(cell, settings=training))


class TestProbeNetworks:
    """Networks that are trained once and kept."""

    def test_it_is_the_network_that_its_cell_trains_and_is_trained_once(self, cache, monkeypatch):
        options = ProbeNetwork.model_validate(PROBE)
        trainings = []

        def watched(cell, keep_weights, context):
            trainings.append(cell)
            return train_cell(cell, keep_weights, context)

        monkeypatch.setattr(probe_network, "train_cell", watched)
        first = probe_network.probe_network(options, (9, 9, 9))
        again = probe_network.probe_network(options, ())
        assert len(trainings) == 1
        expected = train_cell(trainings[0], keep_weights=True)
        for probe in (first, again):
            assert probe.shape == (1, 8, 8)
            assert probe.accuracy == expected.outcome.final_acc()
            assert all(torch.equal(probe.model.state_dict()[name], w) for name, w in expected.weights.items())
        assert len(list(cache.glob("*.pt"))) == 1

    def test_it_is_trained_once_by_two_processes(self, cache, tmp_path):
        log = tmp_path / "trainings"
        code = f"""if True:
            from mas.experiments import probe_network
            from mas.experiments.config.embedding import ProbeNetwork
            train = probe_network.train_cell
            def watched(*args, **kwargs):
                with open({str(log)!r}, "a") as file:
                    file.write("trained\\n")
                return train(*args, **kwargs)
            probe_network.train_cell = watched
            print(probe_network.probe_network(ProbeNetwork.model_validate({PROBE!r}), ()).accuracy)
        """
        start = [sys.executable, "-W", "ignore", "-c", code]
        two = [
            subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)
        ]
        printed = [process.communicate()[0].strip() for process in two]
        assert printed[0] == printed[1] != ""
        assert log.read_text() == "trained\n"
        assert len(list(cache.glob("*.pt"))) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"model": {"name": "mlp", "hidden": [9]}},
            {"training": PROBE["training"] | {"lr": 0.01}},
            {"benchmark": {"stream": "whole", "dataset": DATA | {"train": 199}}},
        ],
    )
    def test_anything_that_changes_it_gives_another_file(self, change):
        files = set()
        for data in (PROBE, PROBE | change):
            options = ProbeNetwork.model_validate(data)
            settings = probe_network.training_settings(options, options.training)
            files.add(probe_network.cached_weights(settings, options.seed))
        assert len(files) == 2

    def test_other_data_give_another_file(self, monkeypatch):
        options = ProbeNetwork.model_validate(PROBE)
        settings = probe_network.training_settings(options, options.training)
        before = probe_network.cached_weights(settings, 0)
        monkeypatch.setattr(probe_network, "fingerprint", lambda spec: "other")
        assert probe_network.cached_weights(settings, 0) != before

    def test_without_training_it_is_as_it_is_built(self, cache):
        options = ProbeNetwork.model_validate({"model": {"name": "mlp", "hidden": [8]}})
        first, again = (probe_network.probe_network(options, (1, 4, 4)) for _ in range(2))
        assert first.shape == (1, 4, 4)
        assert first.accuracy is None
        for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(one, other)
        assert not cache.exists()

    def test_one_that_diverges_is_one_clear_line(self):
        training = PROBE["training"] | {"optimizer": "sgd", "lr": 1e30}
        options = ProbeNetwork.model_validate(PROBE | {"training": training})
        with pytest.raises(UserError, match=r"^probe_network: its training diverged \(.*\); lower its training.lr$"):
            probe_network.probe_network(options, ())


class TestFiles:
    """Embeddings in one file."""

    def test_they_are_read_as_they_were_written(self, tmp_path):
        own = [record.embedding() for record in embed_cell(cells_of()[0]).outcome.embeddings]
        path = tmp_path / "embeddings.npz"
        path.write_bytes(embeddings_as_npz([EmbeddedTask(e.task, "pairs", 3, e) for e in own]))
        for read in (load_embeddings(path), load_embeddings(tmp_path)):
            assert [e.task for e in read] == [e.task for e in own]
            for one, other in zip(read, own, strict=True):
                assert torch.equal(one.vector, other.vector)
                assert torch.equal(one.scale, other.scale)
                for name in ("probe", "samples", "classes", "labels", "beta", "head_loss", "head_accuracy"):
                    assert getattr(one, name) == getattr(other, name)
        assert torch.equal(distance_matrix(read), distance_matrix(own))
        with np.load(path, allow_pickle=False) as arrays:
            assert arrays["vectors"].shape == (3, 8)
            assert arrays["seed"].tolist() == [3, 3, 3]
            assert arrays["stream"].tolist() == ["pairs"] * 3

    @pytest.mark.parametrize("content", [None, b"", b"no zip"])
    def test_another_file_is_one_clear_line(self, tmp_path, content):
        path = tmp_path / "own.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="holds no embeddings") as caught:
            load_embeddings(path)
        assert len(str(caught.value).splitlines()) == 1

    def test_an_archive_of_other_arrays_is_one_clear_line(self, tmp_path):
        np.savez(tmp_path / "own.npz", vectors=np.zeros(3))
        with pytest.raises(UserError, match="holds no embeddings"):
            load_embeddings(tmp_path / "own.npz")
