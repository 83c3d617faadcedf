"""Tables about maps of tasks: retrieval, stability, and the classes of tasks."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mas.experiments.embedding_file import EmbeddedTask
from mas.experiments.kinds.task_map.config import LABELLED_STREAMS, TaskMap
from mas.task2vec import TaskEmbedding, cosine_distance, embed
from tools.semantics import path_distance, read_paths, tree_order
from tools.task_maps import PATHS, EmbeddedRun, classes_of_tasks, retrieval, stability, with_beta

CONFIGS = Path(__file__).parent.parent / "configs"


def _embedding(vector, samples=20):
    values = torch.tensor(vector).double()
    return TaskEmbedding(values, torch.full_like(values, 0.1), "probe", samples=samples, classes=2)


def _run(folder, vectors, samples=20):
    """Return a run with embeddings of ``vectors[stream][seed][task]`` in place of what a folder holds."""
    run = EmbeddedRun(Path(folder))
    streams = [LABELLED_STREAMS["split"].model_validate({"stream": "split", "label": name}) for name in vectors]
    config = TaskMap(experiment="task_map", streams=streams, probe_network={})
    embedded = [
        EmbeddedTask(f"{stream} {task}", stream, seed, _embedding(vector, samples))
        for stream, by_seed in vectors.items()
        for seed, tasks in enumerate(by_seed)
        for task, vector in enumerate(tasks)
    ]
    run.__dict__.update(config=config, embedded=embedded)  # what its cached properties would read
    return run


A, B, C = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
NEAR_A, NEAR_B = [1.0, 0.1, 0.0], [0.1, 1.0, 0.0]


def _row(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_retrieval_counts_the_tasks_whose_other_half_is_nearest():
    rows = list(retrieval(_run("x", {"s": [[A, B, C], [NEAR_A, NEAR_B, A]]})))
    row = _row(rows, distance="cosine")
    # from seed 0: A is nearest to the third task, B to its own, C to its own, which has A too: 2 of 3
    # from seed 1: NEAR_A and NEAR_B find their own, the third task finds the first: 2 of 3
    assert row["share"] == pytest.approx(4 / 6)
    assert (row["tasks"], row["comparisons"], row["per_class"]) == (3, 6, 10)


def test_retrieval_pairs_disjoint_halves_only():
    rows = list(retrieval(_run("x", {"s": [[A, B], [NEAR_A, NEAR_B], [B, A], [NEAR_B, NEAR_A]]})))
    assert _row(rows, distance="kl")["share"] == 1.0  # seeds 0 and 2 disagree, and are never compared


def test_all_streams_together_are_a_harder_group_than_each():
    rows = list(retrieval(_run("x", {"s": [[A, B], [NEAR_A, NEAR_B]], "t": [[C, A], [C, A]]})))
    assert _row(rows, stream="s", distance="cosine")["share"] == 1.0
    assert _row(rows, stream="all", distance="cosine")["share"] == pytest.approx(6 / 8)
    assert _row(rows, stream="all", distance="cosine")["tasks"] == 4


def test_stability_compares_with_the_run_of_most_images():
    few, many = [[A, B, C], [NEAR_A, NEAR_B, C]], [[A, NEAR_A, C], [A, NEAR_A, C]]
    rows = list(stability([_run("few", {"s": few}), _run("many", {"s": many}, samples=200)]))
    own = _row(rows, run="many", distance="cosine")
    assert (own["rank"], own["ratio"], own["same"]) == pytest.approx((1, 1, 0))
    other = _row(rows, run="few", distance="cosine")
    embeddings = [[_embedding(vector) for vector in tasks] for tasks in few]
    there = [[cosine_distance(a, b) for b in embeddings[1]] for a in embeddings[0]]
    apart = ~np.eye(3, dtype=bool)
    assert other["apart"] == pytest.approx(np.array(there)[apart].mean())
    assert other["same"] == pytest.approx(np.diag(there).mean())
    assert other["rank"] < 1


def test_classes_of_tasks_follow_the_order_of_the_stream():
    options = {"stream": "split", "dataset": "digits", "experiences": 2, "class_order": [3, 1, 0, 2]}
    stream = LABELLED_STREAMS["split"].model_validate(options)
    assert classes_of_tasks(stream, 4) == [[3, 1], [0, 2]]
    fixed = LABELLED_STREAMS["split"].model_validate(options | {"class_order": "fixed", "experiences": 3})
    assert classes_of_tasks(fixed, 4) == [[0, 1], [2], [3]]
    each = LABELLED_STREAMS["one_vs_rest"].model_validate({"stream": "one_vs_rest", "dataset": "digits"})
    assert classes_of_tasks(each, 3) == [[0], [1], [2]]
    drawn = LABELLED_STREAMS["split"].model_validate(options | {"class_order": "random"})
    with pytest.raises(ValueError, match="give split with a class_order"):
        classes_of_tasks(drawn, 4)


def test_the_config_has_the_classes_in_the_order_of_the_tree():
    config = yaml.safe_load((CONFIGS / "task_map_tiny_imagenet.yaml").read_text())
    paths = read_paths(PATHS)
    order = config["streams"][1]["class_order"]
    assert order == tree_order(paths)
    within = [path_distance(paths[a].chain, paths[b].chain) for a, b in pairwise(order)]
    by_id = [path_distance(a.chain, b.chain) for a, b in pairwise(paths)]
    assert np.mean(within) < np.mean(by_id)


def test_another_beta_is_that_of_embedding_with_it():
    probe = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).double()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 3)]
    found = with_beta(embed(probe, batches, beta=1e-3), 1e-5)
    expected = embed(probe, batches, beta=1e-5)
    assert found.beta == expected.beta
    torch.testing.assert_close(found.vector, expected.vector, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-12, atol=0)
