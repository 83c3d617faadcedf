"""Maps of tasks: tables against slow references, figures, page, what is refused, and that a run is the same again."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from typer.testing import CliRunner

import mas.experiments
from mas.cli import app
from mas.experiments.embedding_file import EmbeddedTask
from mas.experiments.errors import UserError
from mas.experiments.kinds.task_map import TASK_MAP
from mas.experiments.kinds.task_map.config import same_images
from mas.experiments.kinds.task_map.figures import draw_map, stream_colours
from mas.experiments.kinds.task_map.geometry import classical_scaling, complete_part, symmetric, t_sne, tree
from mas.experiments.kinds.task_map.page import READING, headline, nearest_and_farthest, page
from mas.experiments.kinds.task_map.tables import (
    difficulty,
    distances_table,
    embedded_tasks,
    map_table,
    orders_table,
    retrieval_table,
    square,
    tables,
    tasks_table,
)
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord, EmbeddingRecord, Outcome
from mas.experiments.results import Results
from mas.task2vec import (
    DISTANCES,
    TaskEmbedding,
    complexity,
    curriculum_order,
    distance_matrix,
    least_typical_order,
)

DATA = {"name": "digits", "train": 200, "test": 100}
SMALL = {
    "experiment": "task_map",
    "streams": [
        {"stream": "pairs", "dataset": DATA, "experiences": 4, "label": "a"},
        {"stream": "pairs", "dataset": DATA, "experiences": 2, "label": "b"},
    ],
    "probe_network": {
        "benchmark": {"stream": "whole", "dataset": DATA},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"epochs": 1, "batch_size": 20},
    },
    "embedding": {"labels": "exact", "parts": 2},
    "seeds": 2,
}
DIGITS = Path(__file__).parents[2] / "configs" / "task_map_digits.yaml"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    return mas.experiments.run(SMALL, output=tmp_path_factory.mktemp("runs") / "small", workers=1)


def contents(folder, left_out=("environment.json",)):
    """Return the files of a folder by name, but for what says how long it took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in left_out:
            content = path.read_bytes()
            found[str(path.relative_to(folder))] = _without_times(content) if path.parent.name == "cells" else content
    return found


def _without_times(record):
    """Return the record of a cell but for what says how long it took, and where."""
    return {key: value for key, value in json.loads(record).items() if key not in ("seconds", "provenance")}


def random_embedding(generator, task, *, near=None):
    """Return an embedding of eight filters, or one that is near another."""
    vector = torch.rand(8, generator=generator, dtype=torch.float64) ** 3
    if near is not None:
        vector = near.vector + 0.3 * vector
    return TaskEmbedding(vector, torch.full((8,), 0.05, dtype=torch.float64), "probe", task=task, samples=9, classes=2)


def random_tasks(count=6, seeds=(0, 1, 2)):
    """Return tasks whose embeddings of several seeds are somewhat alike, seed by seed."""
    generator = torch.Generator().manual_seed(0)
    bases = [random_embedding(generator, f"t{number}") for number in range(count)]
    return [
        EmbeddedTask(
            base.task, "even" if number % 2 == 0 else "odd", seed, random_embedding(generator, base.task, near=base)
        )
        for seed in seeds
        for number, base in enumerate(bases)
    ]


def all_matrices(embedded):
    return {name: distance_matrix([one.embedding for one in embedded], name).numpy() for name in DISTANCES}


def made_up_results(config, tasks=3, *, diverged=()):
    """Return results of a config with random embeddings; those of some (label, seed) diverged."""
    generator = torch.Generator().manual_seed(1)
    records = []
    for cell in Plan(config).every_cell():
        own = [random_embedding(generator, f"{number}") for number in range(tasks)]
        outcome = Outcome(embeddings=[EmbeddingRecord.of(e) for e in own])
        if (cell.label, cell.seed) in diverged:
            outcome = Outcome(status="diverged", reason="moment is nan")
        records.append(CellRecord(cell, outcome))
    return Results(records)


class TestGeometry:
    """Points and trees from distances."""

    @pytest.mark.parametrize("axes", [2, 5])
    def test_classical_scaling_reproduces_euclidean_distances(self, axes):
        points = np.random.default_rng(0).normal(size=(20, axes))
        found, share = classical_scaling(cdist(points, points), axes)
        assert np.abs(cdist(found, found) - cdist(points, points)).max() < 1e-9
        assert share == pytest.approx(1)
        assert np.abs(found.mean(0)).max() < 1e-9

    def test_its_share_is_that_of_the_principal_axes(self):
        points = np.random.default_rng(1).normal(size=(30, 4)) * [5, 3, 1, 0.5]
        _, share = classical_scaling(cdist(points, points))
        variances = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
        assert share == pytest.approx(variances[:2].sum() / variances.sum())

    def test_its_signs_do_not_depend_on_the_order_of_rounding(self):
        points = np.random.default_rng(2).normal(size=(7, 2))
        found, _ = classical_scaling(cdist(points, points))
        largest = np.abs(found).argmax(0)
        assert (found[largest, [0, 1]] > 0).all()

    def test_one_task_and_equal_tasks_have_a_place(self):
        assert classical_scaling(np.zeros((1, 1)))[0].tolist() == [[0, 0]]
        points, share = classical_scaling(np.zeros((3, 3)))
        assert points.tolist() == [[0, 0]] * 3
        assert share == 1

    def test_t_sne_is_the_same_again_and_keeps_groups_together(self):
        points = np.random.default_rng(3).normal(size=(12, 3))
        points[6:] += 30
        distances = cdist(points, points)
        found = t_sne(distances)
        assert np.array_equal(found, t_sne(distances))
        away = cdist(found, found) + np.diag(np.full(12, np.inf))
        assert ((away.argmin(1) >= 6) == (np.arange(12) >= 6)).all()

    def test_distances_are_made_symmetric_for_trees_alone(self):
        matrix = np.array([[-0.1, 0.2, 0.6], [0.4, -0.2, 1.0], [0.8, 0.6, 0.0]])
        assert np.allclose(symmetric(matrix), [[0, 0.3, 0.7], [0.3, 0, 0.8], [0.7, 0.8, 0]])
        raised = symmetric(matrix - 0.5)
        assert np.allclose(raised, [[0, 0, 0.4], [0, 0, 0.5], [0.4, 0.5, 0]])

    def test_the_tree_is_of_average_linkage(self):
        matrix = symmetric(np.array([[0, 1.0, 4], [0, 0, 6], [0, 0, 0]]) * 2)
        assert tree(matrix)[:, 2].tolist() == [1.0, 5.0]

    def test_tasks_with_unknown_distances_are_left_out(self):
        matrix = pd.DataFrame(np.zeros((3, 3)), list("abc"), list("abc"))
        matrix.loc["b", ["a", "c"]] = matrix.loc[["a", "c"], "b"] = np.nan
        assert list(complete_part(matrix).index) == ["a", "c"]


class TestTables:
    """Against loops and the library's functions."""

    def test_distances_are_the_librarys_mean_over_seeds(self):
        embedded = random_tasks()
        table = distances_table(embedded, all_matrices(embedded)).set_index(["distance", "from", "to"])
        assert len(table) == len(DISTANCES) * 36
        for name, (a, b) in itertools.product(DISTANCES, itertools.product(range(6), repeat=2)):
            by_seed = [
                DISTANCES[name](embedded[6 * seed + a].embedding, embedded[6 * seed + b].embedding) for seed in range(3)
            ]
            row = table.loc[name, f"t{a}", f"t{b}"]
            assert row["mean"] == pytest.approx(np.mean(by_seed), abs=1e-14)
            assert row["n"] == 3

    def test_seeds_that_lack_a_task_are_not_counted(self):
        embedded = [one for one in random_tasks() if (one.task, one.seed) not in {("t1", 0), ("t2", 1), ("t2", 2)}]
        matrices = all_matrices(embedded)
        table = distances_table(embedded, matrices).set_index(["distance", "from", "to"])
        n = {(a, b): table.loc["cosine", a, b]["n"] for a, b in itertools.product(["t0", "t1", "t2"], repeat=2)}
        assert (n["t0", "t0"], n["t0", "t1"], n["t0", "t2"], n["t1", "t2"]) == (3, 2, 1, 0)
        assert np.isnan(table.loc["cosine", "t1", "t2"]["mean"])

    @pytest.mark.parametrize("missing", [set(), {("t1", 0), ("t2", 1), ("t2", 2)}])
    def test_retrieval_equals_a_plain_loop(self, missing):
        embedded = [one for one in random_tasks() if (one.task, one.seed) not in missing]
        table = retrieval_table(embedded, all_matrices(embedded)).set_index("distance")
        for name, distance in DISTANCES.items():
            hits, odds = [], []
            for one in embedded:
                others = [other for other in embedded if other.seed != one.seed]
                if one.task not in [other.task for other in others]:
                    continue
                nearest = min(others, key=lambda other: distance(one.embedding, other.embedding))
                hits.append(nearest.task == one.task)
                odds.append(np.mean([other.task == one.task for other in others]))
            row = table.loc[name]
            assert (row["share"], row["n"]) == (np.mean(hits), len(hits))
            assert row["chance"] == pytest.approx(np.mean(odds))
            interval = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
            assert (row["ci_low"], row["ci_high"]) == (interval.low, interval.high)
        assert table["share"].between(0.05, 0.999).any()  # neither all nor none

    def test_chance_is_one_of_all_tasks(self):
        embedded = random_tasks(5, seeds=(3, 8))
        assert retrieval_table(embedded, all_matrices(embedded))["chance"].tolist() == pytest.approx([0.2] * 6)

    def test_tasks_and_their_difficulty(self):
        embedded = random_tasks()
        table = tasks_table(embedded)
        for one, row in zip(embedded, table.itertuples(), strict=True):
            assert (row.task, row.stream, row.seed, row.samples) == (one.task, one.stream, one.seed, 9)
            assert row.norm == pytest.approx(float(one.embedding.vector.sum()))
            assert row.complexity == complexity(one.embedding)
        own = difficulty(table)
        assert own["norm"].is_monotonic_decreasing
        assert own.set_index("task")["norm"].to_dict() == pytest.approx(table.groupby("task")["norm"].mean().to_dict())
        assert (own["ci_low"] < own["norm"]).all()

    def test_orders_are_the_librarys(self):
        embedded = random_tasks(seeds=(0,))
        own = [one.embedding for one in embedded]
        for name in ("cosine", "asymmetric", "kl"):
            matrix = square(distances_table(embedded, all_matrices(embedded)), name)
            table = orders_table(tasks_table(embedded), matrix)
            found = {order: list(rows["task"]) for order, rows in table.groupby("order")}
            assert found["curriculum"] == [own[i].task for i in curriculum_order(own)]
            assert found["least_typical"] == [own[i].task for i in least_typical_order(own, distance=name)]

    @pytest.mark.parametrize(("count", "methods"), [(4, ["scaling"]), (5, ["scaling", "tsne"])])
    def test_maps_have_each_task_once(self, count, methods):
        embedded = random_tasks(count, seeds=(0,))
        matrix = square(distances_table(embedded, all_matrices(embedded)), "asymmetric")
        table = map_table(matrix)
        assert list(table["method"].unique()) == methods
        for _, own in table.groupby("method"):
            assert list(own["task"]) == [f"t{i}" for i in range(count)]
        points, share = classical_scaling(symmetric(matrix.to_numpy()))
        scaling = table[table["method"] == "scaling"]
        assert np.array_equal(scaling[["x", "y"]].to_numpy(), points)
        assert scaling["share"].unique().tolist() == [share]

    def test_names_are_unique_and_the_same_for_each_seed(self, run):
        by_seed = run.tasks.groupby("seed")["task"].agg(list)
        assert by_seed[0] == by_seed[1]
        assert len(set(by_seed[0])) == 6
        streams = dict(zip(run.tasks.task, run.tasks.stream, strict=True))
        names = {"a": set(), "b": set()}
        for task, stream in streams.items():
            names[stream].add(task.removeprefix(f"{stream}: "))
        both = names["a"] & names["b"]
        assert both  # the draw of two pairs is among the first of four, or this test shows nothing
        for task, stream in streams.items():
            plain = task.removeprefix(f"{stream}: ")
            assert (plain in both) == (plain != task)

    def test_a_run_in_which_cells_diverged_still_has_a_map(self):
        config = load_config(SMALL, try_data=False)
        results = made_up_results(config, diverged={("a", 0), ("b", 1)})
        made = tables(config, results)
        assert set(made["tasks"]["seed"]) == {0, 1}
        assert made["distances"]["mean"].isna().any()
        assert made["retrieval"].empty
        assert "3 tasks are left out" in str(page(config, made))
        assert set(TASK_MAP.figures(config, made)) == {"map_scaling", "heat_map", "difficulty"}
        assert headline(config, made).table.rows

    def test_a_run_in_which_all_cells_diverged_says_so(self):
        config = load_config(SMALL | {"seeds": 1}, try_data=False)
        results = made_up_results(config, diverged={("a", 0), ("b", 0)})
        made = tables(config, results)
        assert made["tasks"].empty
        assert TASK_MAP.figures(config, made) == {}
        assert "diverged" in page(config, made).introduction
        assert headline(config, made).table.rows == []


class TestPage:
    """What people read."""

    def test_nearest_and_farthest_pairs(self):
        matrix = pd.DataFrame([[0, 1.0, 5], [2, 0, 3], [4, 6, 0]], list("abc"), list("abc"))
        near, far = nearest_and_farthest(matrix, 2)
        assert near == [("a", "b", 1.0), ("b", "c", 3.0)]
        assert far == [("c", "b", 6.0), ("a", "c", 5.0)]

    def test_it_says_what_was_embedded_and_how_well_tasks_are_found_again(self, run):
        text = str(page(run.config, run.tables))
        accuracy = 100 * run.outcomes.records[0].outcome.probe_accuracy
        for part in (
            "6 tasks of 2 streams",
            f"trained on digits (test accuracy {accuracy:.1f} %)",
            "mlp with 8 filters",
        ):
            assert part in text
        assert len(run.headline().table.rows) <= 12
        share = run.retrieval.set_index("distance").loc["cosine", "share"]
        assert f"retrieval: {100 * share:.1f} [" in run.headline().notes[1]

    def test_every_distance_is_explained_and_those_with_a_direction_are_drawn(self, run):
        assert set(READING) == set(DISTANCES)
        for name in ("asymmetric", "kl"):  # with a direction, and with negative ones
            config = run.config.model_copy(update={"distance": name})
            made = tables(config, run.outcomes)
            drawn = TASK_MAP.figures(config, made)
            assert set(drawn) == {"map_scaling", "map_tsne", "heat_map", "difficulty"}
            drawn["heat_map"].draw_without_rendering()
            assert READING[name] in str(page(config, made))

    def test_parts_that_no_seed_embeds_are_said(self):
        config = load_config(SMALL | {"embedding": {"parts": 5}}, try_data=False)
        made = tables(config, made_up_results(config))
        assert "3 of the 5 parts" in page(config, made).introduction

    def test_one_seed_has_no_retrieval(self):
        config = load_config(SMALL | {"seeds": 1}, try_data=False)
        made = tables(config, made_up_results(config))
        assert "retrieval" not in made
        assert "Retrieval" not in [section.title for section in page(config, made).sections]


class TestFigures:
    """Labels can be read."""

    def test_labels_of_a_hundred_tasks_do_not_overlap(self):
        points = np.random.default_rng(0).normal(size=(100, 2))
        points[:40] *= 0.2  # a dense group
        names = [f"a task {i}" for i in range(100)]
        table = pd.DataFrame({"task": names, "x": points[:, 0], "y": points[:, 1]})
        colours = stream_colours(pd.DataFrame({"task": names, "stream": "own"}))
        figure = draw_map(table, colours, "a map")
        figure.draw_without_rendering()
        boxes = {note.get_text(): note.get_window_extent() for note in figure.axes[0].texts if note.get_text()}
        assert set(boxes) == set(names)
        overlapping = [
            (one, other) for one, other in itertools.combinations(names, 2) if boxes[one].overlaps(boxes[other])
        ]
        assert len(overlapping) <= 2
        frame = figure.axes[0].get_window_extent().padded(1)
        assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes.values())


class TestRuns:
    """The run is the same however it is made."""

    def test_every_file_is_there(self, run):
        assert run.failed == ()
        tables_made = {path.name for path in run.folder.glob("*.csv")}
        assert tables_made == {f"{name}.csv" for name in ("tasks", "probe", "distances", "retrieval", "map", "orders")}
        own = mas.experiments.load_embeddings(run.folder)
        assert own[0].vector.shape == (8,)
        again = distance_matrix(own[:6], "asymmetric")  # of the first seed
        assert torch.equal(
            again, distance_matrix([one.embedding for one in embedded_tasks(run.outcomes.records)[:6]], "asymmetric")
        )
        assert [e.task for e in own] == list(run.tasks.task)
        assert {e.probe for e in own} == {run.probe.probe.item()}

    def test_workers_cannot_matter_law_9(self, run, tmp_path):
        other = mas.experiments.run(SMALL, output=tmp_path / "small", workers=2)
        assert contents(other.folder) == contents(run.folder)

    def test_a_resumed_run_is_the_same_law_8(self, run, tmp_path):
        folder = tmp_path / "small"
        shutil.copytree(run.folder, folder)
        for name in ("a-seed1", "b-seed0"):
            (folder / "cells" / f"{name}.json").unlink()
        resumed = mas.experiments.run(SMALL, output=folder, workers=1)
        assert contents(resumed.folder) == contents(run.folder)

    def test_a_report_needs_no_data_and_no_probe_network(self, run, tmp_path, monkeypatch):
        folder = tmp_path / "small"
        shutil.copytree(run.folder, folder)
        for path in [*folder.glob("*.csv"), folder / "embeddings.npz", folder / "report.html"]:
            path.unlink()
        monkeypatch.setenv("MAS_CACHE", str(tmp_path / "nothing"))
        monkeypatch.setattr("mas.experiments.trial.try_benchmark", None)
        monkeypatch.setattr("mas.experiments.build.draw_stream", None)
        done = CliRunner().invoke(app, ["report", str(folder)], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert "6 tasks, 2 seeds; distance: cosine" in done.output
        assert contents(folder) == contents(run.folder)


class TestMistakes:
    """One line each."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                ["streams=[{stream: pairs, dataset: digits}, {stream: pars, dataset: digits}]"],
                "streams[1].stream: found 'pars', did you mean 'pairs'?; allowed: split",
            ),
            (
                ["streams=[{stream: whole, dataset: digits}]"],
                "streams: found 1 task; a map needs at least 2: add a stream",
            ),
            (
                ["streams.1={stream: split, dataset: digits, experiences: 10}"],
                "streams[1]: found task '4' with one class; a task to embed has two classes or more",
            ),
            (["streams.1.label=one_vs_rest"], "streams[1]: found a second 'one_vs_rest'; add a label of its own"),
            (
                ["embedding.parts=143"],
                "embedding.parts: found 143, but a class of task '0' has 142 train images; allowed: at most 142",
            ),
            (
                ["embedding={parts: 40, data: test}"],
                "embedding.parts: found 40, but a class of task '0' has 36 test images; allowed: at most 36",
            ),
            (["seeds=3"], "seeds: found 0 and 2, which embed the same images with labels: exact, and so equally"),
            (["embedding.labels=fisher"], "embedding.labels: found 'fisher'; allowed: exact, sampled"),
            (["embedding.steps=5"], "embedding: does not fit: steps are of labels: variational, not of exact"),
            (["probe_network.benchmark=null"], "probe_network: does not fit: training needs a benchmark"),
            (["probe_network.training=null"], "probe_network: does not fit: a benchmark needs training"),
            (
                ["probe_network.training.lr={select: [0.1, 0.01]}"],
                "probe_network.training.lr.select: experiment: task_map has no ACC to choose by; give one value",
            ),
            (["distance=euclidean"], "distance: found 'euclidean'; allowed: cosine, asymmetric"),
        ],
    )
    def test_mistakes_are_one_clear_line(self, changes, message):
        with pytest.raises(UserError) as caught:
            load_config(DIGITS, changes)
        [line] = str(caught.value).splitlines()
        assert message in line

    def test_images_of_two_shapes_need_a_network_that_is_trained(self, tmp_path, monkeypatch):
        (tmp_path / "wide.py").write_text(
            "from mas.benchmarks import Images\nimport torch\n"
            "def wide():\n    own = Images(torch.rand(8, 1, 9, 9), torch.arange(8) % 2)\n    return own, own\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        streams = [SMALL["streams"][0], {"stream": "pairs", "dataset": {"name": "import", "function": "wide:wide"}}]
        untrained = SMALL | {"streams": streams, "probe_network": {"model": {"name": "mlp"}}, "embedding": {}}
        with pytest.raises(UserError, match=r"streams\[1\]: found images of shape \(1, 9, 9\), and \(1, 8, 8\)"):
            load_config(untrained)
        assert load_config(untrained | {"probe_network": SMALL["probe_network"]})

    @pytest.mark.parametrize(
        ("options", "seeds", "expected"),
        [
            ({"parts": 2}, [0, 1], []),
            ({"parts": 2}, [0, 1, 2, 5], [(0, 2), (1, 5)]),
            ({}, [4, 7, 9], [(4, 7), (4, 9)]),
            ({"per_class": 5}, [4, 7, 9], []),
        ],
    )
    def test_seeds_that_embed_the_same_images(self, options, seeds, expected):
        config = load_config(SMALL | {"embedding": {"labels": "hutchinson", **options}, "seeds": seeds}, try_data=False)
        assert same_images(config) == expected


def test_settings_of_embeddings_are_those_of_the_config():
    config = load_config(SMALL, try_data=False)
    cells = Plan(config).every_cell()
    assert [cell.id for cell in cells] == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"]
    for cell in cells:
        assert cell.settings.embedding == config.embedding
        assert cell.settings.probe_network == config.probe_network
        assert cell.settings.stream_seed == 0  # each task is the same for every seed
    assert replace(cells[0], seed=1) == cells[2]
