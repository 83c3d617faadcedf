"""``experiment: expert_selection``: experts against plain loops, tables against numbers by hand."""

import contextlib
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from mas.cli import app
from mas.experiments import experts
from mas.experiments.build import draw_stream
from mas.experiments.cell import CellTraining
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.config.experts import FineTuning, TransferOptions
from mas.experiments.context import CellContext
from mas.experiments.embedding import embed_cell
from mas.experiments.errors import UserError
from mas.experiments.experts import adapted_accuracy, measure_expert, new_task, train_expert
from mas.experiments.kinds.expert_selection.measured import measured_by_seed
from mas.experiments.kinds.expert_selection.tables import tables
from mas.experiments.plan import Plan
from mas.experiments.probe_network import probe_network
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord, EmbeddingRecord, Outcome
from mas.experiments.reporting import write_report
from mas.experiments.results import Results
from mas.experiments.runner import run_experiment
from mas.experiments.seeds import stream_seed
from mas.experiments.store import Store
from mas.task2vec import TaskEmbedding, head_accuracy, kl_divergence, reachability
from tests.experiments.builders import without_time
from tests.experiments.test_resuming import KilledError, KillingCheckpoints

DATA = {
    "experiment": "expert_selection",
    "benchmark": {"stream": "pairs", "dataset": "digits", "experiences": 3, "scenario": "domain"},
    "experts": 2,
    "probe_network": {
        "benchmark": {"stream": "whole", "dataset": {"name": "digits", "train": 200, "test": 20}},
        "model": {"name": "mlp", "hidden": [12]},
        "training": {"epochs": 1, "batch_size": 50},
    },
    "training": {"epochs": 2, "batch_size": 64, "optimizer": "sgd", "lr": 0.1},
    "transfer": {"per_class": 4},
    "seeds": 1,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))


def config_of(**changes):
    return load_config(DATA | changes, try_data=False)


def cells_of(**changes):
    return {cell.label: cell for cell in Plan(config_of(**changes)).every_cell()}


@pytest.fixture(scope="module")
def benchmark():
    stream = config_of().benchmark
    return stream.entry(**stream.arguments(), seed=0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def images_of(experience):
    samples = [experience.dataset.eval()[i] for i in range(len(experience.dataset))]
    return torch.stack([x for x, *_ in samples]), torch.tensor([y for _, y, *_ in samples])


class AsDouble(nn.Module):
    """The images in float64."""

    def forward(self, x):
        return x.double()


class TestPlan:
    def test_runs(self):
        cells = cells_of()
        assert list(cells) == ["task2vec", "probe_network", "expert-0", "expert-1"]
        assert [cells[label].settings.expert for label in ("probe_network", "expert-0", "expert-1")] == [None, 0, 1]
        assert {cell.settings.stream_seed for cell in cells.values()} == {0}

    def test_tasks_are_embedded_from_no_more_images_than_experts_are_adapted_with(self):
        assert cells_of()["task2vec"].settings.embedding.per_class == 4
        assert cells_of(embedding={"per_class": 9})["task2vec"].settings.embedding.per_class == 4
        assert cells_of(embedding={"per_class": 2})["task2vec"].settings.embedding.per_class == 2
        assert cells_of(transfer={})["task2vec"].settings.embedding.per_class is None

    def test_records_are_read_as_they_were_written(self):
        for cell in cells_of(transfer={"fine_tune": {"steps": 7}}).values():
            record = CellRecord(cell, Outcome(accuracy=[[0.5, 0.25]]))
            assert CellRecord.from_json(record.to_json()) == record


class TestTraining:
    def test_an_expert_equals_a_plain_loop(self, benchmark, network):
        """The batch holds the whole task, so that the order of images does not matter."""
        experience = benchmark.train_stream[0]
        x, y = images_of(experience)
        training = CellTraining(epochs=3, batch_size=len(y), optimizer="sgd", lr=0.2, momentum=0.5)
        network = nn.Sequential(AsDouble(), *network).double()
        expert = deepcopy(network)
        train_expert(expert, experience, training, shape=(1, 8, 8), seed=0)
        loop = deepcopy(network)
        loop[-1] = nn.Linear(12, 2).double()
        nn.init.zeros_(loop[-1].weight)
        nn.init.zeros_(loop[-1].bias)
        optimizer = torch.optim.SGD(loop.parameters(), 0.2, momentum=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(loop(x), y).backward()
            optimizer.step()
        for (name, found), expected in zip(expert.named_parameters(), loop.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=name)
        assert not torch.equal(expert[2].weight, network[2].weight)

    def test_one_seed_one_expert(self, benchmark, network):
        training = CellTraining(epochs=1, batch_size=32, lr=0.01)
        weights = []
        for seed in (0, 0, 1):
            expert = deepcopy(network)
            torch.rand(1)  # the global stream does not matter
            train_expert(expert, benchmark.train_stream[0], training, shape=(1, 8, 8), seed=seed)
            weights.append(expert[1].weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_images_are_brought_to_the_shape_of_the_probe_network(self, benchmark):
        expert = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 5))
        training = CellTraining(epochs=1, batch_size=64)
        train_expert(expert, benchmark.train_stream[0], training, shape=(3, 6, 6), seed=0)
        assert expert[1].weight.shape == (2, 108)

    def test_a_blow_up_ends_the_cell_as_diverged(self):
        cell = cells_of(training=DATA["training"] | {"lr": 1e30})["expert-0"]
        outcome = measure_expert(cell).outcome
        assert outcome.status == "diverged"
        assert outcome.accuracy == []


def as_rows(batches):
    """Return images as a set of byte strings."""
    return {x.numpy().tobytes() for batch in batches for x in batch[0]}


class TestNewTask:
    def test_no_test_image_is_trained_on(self, benchmark):
        for number in range(3):
            train, test = new_task(benchmark, number, TransferOptions(), shape=(1, 8, 8), seed=0)
            assert as_rows(train) == as_rows([images_of(benchmark.train_stream[number])])
            assert as_rows(test) == as_rows([images_of(benchmark.test_stream[number])])
            assert not as_rows(train) & as_rows(test)

    def test_few_images_of_each_class(self, benchmark):
        few = TransferOptions(per_class=4)
        (one, _), (again, test), (other, _) = [
            new_task(benchmark, 1, few, shape=(1, 8, 8), seed=seed) for seed in (0, 0, 1)
        ]
        assert torch.cat([y for _, y in one]).bincount().tolist() == [4, 4]
        assert as_rows(one) == as_rows(again) != as_rows(other)
        assert as_rows(one) < as_rows([images_of(benchmark.train_stream[1])])
        assert sum(len(y) for _, y in test) == len(benchmark.test_stream[1].dataset)


class TestAdaptation:
    def test_a_head_on_frozen_features(self, benchmark, network):
        train, test = (images_of(stream[2]) for stream in (benchmark.train_stream, benchmark.test_stream))
        expected = head_accuracy(network, [train], [test], weight_decay=0.5)
        parts = [list(zip(*(tensor.split(30) for tensor in images), strict=True)) for images in (train, test)]
        assert adapted_accuracy(network, *parts, TransferOptions(weight_decay=0.5), seed=0) == expected

    def test_fine_tuning_on_images_sorted_by_class_in_mixed_batches(self, benchmark, network):
        x, y = images_of(benchmark.train_stream[2])
        order = y.argsort(stable=True)
        x, y = x[order], y[order]
        test = [images_of(benchmark.test_stream[2])]
        options = TransferOptions(fine_tune=FineTuning(steps=20, lr=0.02, batch_size=16))
        found = adapted_accuracy(network, [(x[:200], y[:200]), (x[200:], y[200:])], test, options, seed=5)
        generator = torch.Generator().manual_seed(5)
        mixed = torch.randperm(len(y), generator=generator)
        batches = [(x[part], y[part]) for part in mixed.split(16)]
        assert all(len(part_y.unique()) == 2 for _, part_y in batches)
        expected = reachability(network, batches, test, steps=20, every=1, lr=0.02, generator=generator)
        assert found == expected.accuracies[-1]
        assert found > 0.7  # batches of one class would end near 0.5

    def test_a_cell_is_training_and_adaptation_to_every_task(self):
        cells = cells_of()
        outcomes = {label: measure_expert(cells[label]).outcome for label in ("probe_network", "expert-0", "expert-1")}
        (generic,), (first,), (second,) = (outcome.accuracy for outcome in outcomes.values())
        assert len(generic) == len(first) == len(second) == 3
        assert generic != first != second
        settings = cells["expert-1"].settings
        expert, shape, _ = probe_network(settings.probe_network, (1, 8, 8))
        own_seed = stream_seed(0, "expert", 1)
        stream = draw_stream(settings.benchmark, 0)  # other images than those of `benchmark`
        train_expert(expert, stream.train_stream[1], settings.training, shape=shape, seed=own_seed)
        for number in range(3):
            parts = new_task(stream, number, settings.transfer, shape=shape, seed=0)
            assert second[number] == head_accuracy(expert, *parts, weight_decay=1e-3)
        wide = measure_expert(cells_of(transfer={})["expert-0"]).outcome.accuracy[0]
        assert wide != first


class TestResuming:
    """A cell that is killed goes on: with the training of the expert, and with the task after the last one."""

    @pytest.mark.parametrize("label", ["expert-1", "probe_network", "task2vec"])
    @pytest.mark.parametrize("kills", [[1], [3], [4, 2]], ids=str)
    def test_killed_cells_end_as_others(self, label, kills, tmp_path):
        cell = cells_of(transfer={"per_class": 4, "fine_tune": {"steps": 3}})[label]
        job = embed_cell if label == "task2vec" else measure_expert
        expected = job(cell)
        for die_after in kills:
            with contextlib.suppress(KilledError):
                job(cell, False, CellContext(KillingCheckpoints(tmp_path / "own", die_after)))
        found = job(cell, False, CellContext(Checkpoints(tmp_path / "own")))
        assert replace(found.outcome, seconds=0.0) == replace(expected.outcome, seconds=0.0)

    def test_nothing_is_done_twice(self, tmp_path, monkeypatch):
        cell = cells_of()["expert-0"]
        adapted, epochs = [], []
        adapt, begin = experts.adapted_accuracy, experts._run
        monkeypatch.setattr(
            experts, "adapted_accuracy", lambda *args, **how: adapted.append(how["seed"]) or adapt(*args, **how)
        )
        monkeypatch.setattr(experts, "_run", lambda *args: epochs.append(args) or begin(*args))
        killed = 0
        for _ in range(20):
            try:
                measure_expert(cell, False, CellContext(KillingCheckpoints(tmp_path / "own", 3)))
                break
            except KilledError:
                killed += 1
        assert killed > 2
        assert len(adapted) == len(set(adapted)) == 3

    def test_the_probe_network_is_resumed(self, tmp_path, monkeypatch):
        options = cells_of()["task2vec"].settings.probe_network
        expected = probe_network(options, ()).model.state_dict()
        monkeypatch.setenv("MAS_CACHE", str(tmp_path / "other"))
        with monkeypatch.context() as patch:
            patch.setattr("mas.experiments.probe_network.Checkpoints", lambda folder: KillingCheckpoints(folder, 4))
            with pytest.raises(KilledError):
                probe_network(options, ())
        (folder,) = (tmp_path / "other").glob("probe_networks/*.checkpoints")
        assert len(list(folder.iterdir())) == 2
        found = probe_network(options, ()).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert not folder.exists()

    def test_too_many_experts_are_refused_before_they_are_planned(self, monkeypatch):
        monkeypatch.setattr(sys.modules["mas.experiments.kinds.expert_selection.plan"], "expert_label", pytest.fail)
        with pytest.raises(UserError, match=r"experts: found 1,000,000,000 runs; allowed: at most 2,000"):
            config_of(experts=10**9)


def embedding_of(vector, task):
    made = TaskEmbedding(torch.tensor(vector, dtype=torch.float64), torch.full((2,), 1e-9, dtype=torch.float64), "p")
    return replace(EmbeddingRecord.of(made), task=task)


ERRORS = {  # by expert, on the tasks a, b, c; the first two have experts
    "probe_network": [0.2, 0.1, 0.4],
    "expert-0": [0.0, 0.2, 0.3],
    "expert-1": [0.5, 0.0, 0.1],
    "expert-2": [0.25, 0.4, 0.0],
}


def made_up_results(config, *, without=()):
    """Return results in which task b lies near a, and c far from both."""
    embeddings = [embedding_of([1.0, 1.0], "a"), embedding_of([1.0, 1.5], "b"), embedding_of([1.0, 9.0], "c")]
    records = []
    for cell in Plan(config).every_cell():
        if cell.label in without:
            continue
        if cell.label == "task2vec":
            records.append(CellRecord(cell, Outcome(embeddings=embeddings)))
        else:
            records.append(CellRecord(cell, Outcome(accuracy=[[1 - error for error in ERRORS[cell.label]]])))
    return Results(records)


class TestTables:
    """d(a, b) < d(b, c) < d(a, c) in the cosine distance."""

    @pytest.fixture
    def made(self):
        config = config_of(experts=3)
        return tables(config, made_up_results(config))

    def test_errors(self, made):
        assert len(made["errors"]) == 12
        errors = made["errors"].set_index(["expert", "task"])["error"]
        assert errors["b", "c"] == pytest.approx(0.1)
        assert errors["probe_network", "b"] == pytest.approx(0.1)
        assert errors["b", "b"] == 0

    def test_distances_are_from_the_expert_to_the_task(self, made):
        values = made["distances"].set_index(["distance", "expert", "task"])["value"]
        assert len(values) == 6 * 6
        assert 0 < values["cosine", "a", "b"] < values["cosine", "b", "c"] < values["cosine", "a", "c"]
        a, b = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 1.0], [1.0, 1.5]))
        cos = torch.cosine_similarity(a / (a + b), b / (a + b), dim=0)
        assert values["cosine", "a", "b"] == pytest.approx(1 - float(cos), rel=1e-6)
        from_a, to_c = embedding_of([1.0, 1.0], "a").embedding(), embedding_of([1.0, 9.0], "c").embedding()
        assert values["kl", "a", "c"] == kl_divergence(from_a, to_c) != values["kl", "c", "a"]

    def test_choices_by_hand(self, made):
        own = made["choices"][made["choices"]["distance"] == "cosine"].set_index("task")
        assert own["expert"].tolist() == ["b", "a", "b"]
        assert own["best_expert"].tolist() == ["c", "a", "b"]
        np.testing.assert_allclose(own["error"], [0.5, 0.2, 0.1])
        np.testing.assert_allclose(own["best"], [0.25, 0.2, 0.1])
        np.testing.assert_allclose(own["chance"], [0.375, 0.3, 0.2])
        np.testing.assert_allclose(own["generic"], [0.2, 0.1, 0.4])
        np.testing.assert_allclose(own["excess"], [1.0, 0.0, 0.0], atol=1e-12)
        np.testing.assert_allclose(own["chance_excess"], [0.5, 0.5, 1.0])
        np.testing.assert_allclose(own["generic_excess"], [-0.2, -0.5, 3.0])
        assert own["found"].tolist() == [0, 1, 1]
        np.testing.assert_allclose(own["rank_correlation"], [-1, 1, 1])

    def test_selection_by_hand(self, made):
        assert made["selection"]["distance"].tolist()[:2] == ["cosine", "asymmetric"]
        own = made["selection"].iloc[0]
        assert own["tasks"] == 3
        means = {"error": 0.8 / 3, "best": 0.55 / 3, "chance": 0.875 / 3, "generic": 0.7 / 3, "found": 2 / 3}
        excesses = {"excess": 1 / 3, "chance_excess": 2 / 3, "generic_excess": 2.3 / 3, "rank_correlation": 1 / 3}
        for name, expected in (means | excesses).items():
            assert own[name] == pytest.approx(expected), name
        assert own["excess_ci_low"] < 1 / 3 < own["excess_ci_high"]

    def test_a_task_counts_once_whatever_the_seeds(self):
        config = config_of(experts=3, seeds=3)
        one = tables(config, made_up_results(config_of(experts=3)))["selection"]
        three = tables(config, made_up_results(config))["selection"]
        np.testing.assert_allclose(three.iloc[:, 1:].astype(float), one.iloc[:, 1:].astype(float))

    def test_a_task_whose_best_error_is_0_has_no_excess(self, monkeypatch):
        monkeypatch.setitem(ERRORS, "expert-2", [0.0, 0.4, 0.0])
        config = config_of(experts=3)
        made = tables(config, made_up_results(config))
        assert made["choices"]["excess"].isna().sum() == 6  # of task a, by each distance
        assert made["selection"]["excess"].iloc[0] == 0
        assert made["selection"]["tasks"].iloc[0] == 3

    @pytest.mark.parametrize("missing", ["task2vec", "expert-1", "probe_network"])
    def test_while_a_cell_is_missing(self, missing):
        config = config_of(experts=3)
        made = tables(config, made_up_results(config, without=[missing]))
        tasks = set(made["choices"]["task"])
        assert tasks == {"task2vec": set(), "expert-1": {"b"}, "probe_network": {"a", "b", "c"}}[missing]
        if missing == "task2vec":
            assert set(made["errors"]["task"]) == {"experience 0", "experience 1", "experience 2"}

    def test_cells_that_diverged_are_as_if_missing(self):
        config = config_of(experts=3)
        results = made_up_results(config)
        results.records[2].outcome.status = "diverged"
        (own,) = measured_by_seed(config, results)
        assert np.isnan(own.errors[0]).all()
        assert not np.isnan(own.errors[1:]).any()


def test_law_9_workers_cannot_matter(tmp_path):
    config = load_config(DATA)
    texts = []
    for workers in (1, 2):
        done = run_experiment(config, tmp_path / f"w{workers}", workers=workers)
        assert done.failed == []
        texts.append([without_time(record) for record in done.results.records])
    assert len(texts[0]) == 4
    assert texts[0] == texts[1]
    write_report(Store(tmp_path / "w1"), config, done.results)
    for name in ("errors.csv", "distances.csv", "choices.csv", "selection.csv", "report.html"):
        assert (tmp_path / "w1" / name).exists()
    assert {path.name for path in (tmp_path / "w1/figures").iterdir()} == {"experts.png", "errors.png"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("experts=1", "experts: found 1; allowed: 2 or more, to choose from"),
        ("experts=4", "experts: found 4; the stream has 3 experiences; allowed: 2 to 3"),
        ("embedding={data: test}", "embedding.data: found test, on which experts are tested; allowed: train"),
        ("training.epochs=[1, 2, 3]", "training.epochs: found a list; allowed: a number"),
        ("benchmark={stream: split, experiences: 10}", "with one class; a task to embed has two classes or more"),
        ("transfer.steps=3", "transfer.steps: unknown key"),
        ("training.lr={select: [0.1, 0.2]}", "experiment: expert_selection has no ACC to choose by; give one value"),
        ("training.optimizer={name: adam, betas: [2.0, 0.9]}", "Invalid beta parameter"),
    ],
)
def test_bad_input_is_one_line(tmp_path, change, message):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(DATA))
    done = CliRunner().invoke(app, ["check", str(path), "--set", change], env={"COLUMNS": "200"})
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert message in line
