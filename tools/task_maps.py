"""Tables about runs of ``experiment: task_map``: retrieval, stability, and how far semantic distance is followed.

Usage: python -m tools.task_maps {retrieval,stability,semantics,pairs} RUN_FOLDER ... --output TABLE.csv
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from mas.batches import run_forward
from mas.experiments import load
from mas.experiments.build import draw_stream
from mas.experiments.config.embedding import EmbeddingOptions
from mas.experiments.embedding import experiences_of, task_batches
from mas.experiments.embedding_file import EmbeddedTask
from mas.experiments.kinds.task_map.config import LabelledStream, TaskMap
from mas.experiments.kinds.task_map.tables import embedded_tasks
from mas.experiments.probe_network import probe_network, shape_of
from mas.experiments.statistics import mean_and_interval
from mas.task2vec import DISTANCES, TaskEmbedding
from mas.task2vec.head import features_of, find_head
from tools.semantics import (
    Matrix,
    class_distances,
    correlation_gain,
    path_distance,
    rank_correlation,
    read_paths,
    task_distances,
    wu_palmer_distance,
)

PATHS = Path("docs/task2vec/wordnet_paths.csv")
CLASSES = {"animal": "n00015388", "artifact": "n00021939"}  # branches of the tree that are looked at alone
BASELINE = "task means"


@dataclass(frozen=True)
class EmbeddedRun:
    """A run, and the embeddings of each of its groups of tasks."""

    folder: Path
    beta: float | None = None  # in place of the run's own: Fisher information does not depend on it

    @cached_property
    def config(self) -> TaskMap:
        """The config of the run."""
        config: TaskMap = load(self.folder).config  # type: ignore[assignment]
        return config

    @cached_property
    def embedded(self) -> list[EmbeddedTask]:
        """Every embedding."""
        found = embedded_tasks(load(self.folder).outcomes.records)
        if self.beta is None:
            return found
        return [replace(one, embedding=with_beta(one.embedding, self.beta)) for one in found]

    @property
    def images_per_class(self) -> int:
        """The images of each class that a task is embedded from: the mean over tasks, in whole numbers."""
        counts = [one.embedding.samples / one.embedding.classes for one in self.embedded]
        return round(float(np.mean(counts)))

    def group(self, stream: str | None) -> dict[int, list[TaskEmbedding]]:
        """Return by seed the embeddings of the tasks of a stream, None for all streams."""
        found: dict[int, list[TaskEmbedding]] = {}
        for one in self.embedded:
            if stream is None or one.stream == stream:
                found.setdefault(one.seed, []).append(one.embedding)
        return found

    def groups(self) -> list[str | None]:
        """Return the titles of the streams, and None, all of them together, if there are several."""
        titles: list[str | None] = [stream.title() for stream in self.config.streams]
        return [*titles, None] if len(titles) > 1 else titles

    def described(self, stream: str | None) -> dict[str, Any]:
        """Return what tells the rows of a table from those of other runs."""
        options = self.config.embedding
        return {
            "run": self.folder.name,
            "stream": "all" if stream is None else stream,
            "data": options.data,
            "labels": options.labels,
            "beta": options.beta if self.beta is None else self.beta,
            "per_class": self.images_per_class,
        }


def with_beta(embedding: TaskEmbedding, beta: float) -> TaskEmbedding:
    """Return an embedding by a Fisher estimator with another weight of the prior: its scale β/λ² is proportional."""
    return replace(embedding, beta=beta, scale=embedding.scale * (beta / embedding.beta))


def retrieval(run: EmbeddedRun) -> Iterator[dict[str, Any]]:
    """Yield for each group of tasks and distance how often a task's other half is the nearest.

    Seeds 0 and 1, 2 and 3, ... are pairs of disjoint halves. Each embedding of one half is compared with those
    of all tasks from the other half. The 95 % interval is over tasks: of a task, all its comparisons are one
    value, because they are not independent.
    """
    for stream in run.groups():
        for distance in DISTANCES:
            matrices = _between_halves(run, stream, distance)
            hits = np.array([matrix.argmin(axis=1) == np.arange(len(matrix)) for matrix in matrices])
            share = mean_and_interval(hits.mean(axis=0))
            counts = {"tasks": share.n, "comparisons": hits.size}
            yield run.described(stream) | {"distance": distance} | counts | _numbers(share.mean, share[1:3], "share")


def stability(runs: Sequence[EmbeddedRun]) -> Iterator[dict[str, Any]]:
    """Yield for each run how its distances compare with those of the run with the most images.

    ``apart`` is the mean distance of different tasks, ``same`` that of the two halves of one task, ``rank`` the
    mean rank correlation of the distances between tasks, from one half to the other, with those of the largest
    run, and ``ratio`` the median of the ratios to them.
    """
    largest = max(runs, key=lambda run: run.images_per_class)
    for run in runs:
        for stream in run.groups():
            for distance in DISTANCES:
                matrices = _between_halves(run, stream, distance)
                reference = np.mean(_between_halves(largest, stream, distance), axis=0)
                apart = ~np.eye(len(reference), dtype=bool)
                ranks = [spearmanr(matrix[apart], reference[apart]).statistic for matrix in matrices]
                ratios = [np.median(matrix[apart] / reference[apart]) for matrix in matrices]
                yield run.described(stream) | {
                    "distance": distance,
                    "apart": np.mean([matrix[apart].mean() for matrix in matrices]),
                    "same": np.mean([matrix.diagonal().mean() for matrix in matrices]),
                    "rank": np.mean(ranks),
                    "ratio": np.mean(ratios),
                }


def semantics(run: EmbeddedRun, resamples: int) -> Iterator[dict[str, Any]]:
    """Yield for each stream, semantic distance and distance of tasks their rank correlation over pairs of tasks.

    The baselines know the network alone, not the Fisher information: ``class means`` is the mean over pairs of
    classes of the Euclidean distance of the classes' mean features, ``task means`` the distance of the tasks'.
    ``gain`` is by how much a correlation exceeds that of ``task means``.
    """
    paths = read_paths(PATHS)
    features = class_features(run.config)
    for stream in run.config.streams:
        tasks = classes_of_tasks(stream, len(paths))
        candidates = _distances_within(run, stream.title()) | _baselines(features, tasks)
        for name, semantic in (("path", path_distance), ("wu_palmer", wu_palmer_distance)):
            target = task_distances(class_distances(paths, semantic), tasks)
            for part, kept in _parts(tasks, [path.chain for path in paths]).items():
                own = np.ix_(kept, kept)
                for distance, matrix in candidates.items():
                    found = rank_correlation(matrix[own], target[own], resamples=resamples)
                    gain = correlation_gain(matrix[own], candidates[BASELINE][own], target[own], resamples=resamples)
                    yield run.described(stream.title()) | {
                        "classes": part,
                        "tasks": found.tasks,
                        "semantic": name,
                        "distance": distance,
                        **_numbers(found.rho, (found.ci_low, found.ci_high), "rho"),
                        "p": found.p,
                        **_numbers(gain[0], gain[1:], "gain"),
                    }


def pairs(run: EmbeddedRun) -> Iterator[dict[str, Any]]:
    """Yield for each pair of tasks of a stream the steps between them in WordNet, and their cosine distance."""
    paths = read_paths(PATHS)
    between_classes = class_distances(paths)
    for stream in run.config.streams:
        steps = task_distances(between_classes, classes_of_tasks(stream, len(paths)))
        distances = _distances_within(run, stream.title())["cosine"]
        for i, j in zip(*np.triu_indices(len(steps), 1), strict=True):
            yield {"stream": stream.title(), "from": i, "to": j, "steps": steps[i, j], "cosine": distances[i, j]}


def classes_of_tasks(stream: LabelledStream, classes: int) -> list[list[int]]:
    """Return the classes of each task of a stream ``split``, or ``one_vs_rest`` (without the rest).

    Raises:
        ValueError: another stream, or a random order.
    """
    options = stream.arguments()
    if stream.stream == "one_vs_rest":
        return [[label] for label in range(classes)]
    order = options.get("class_order", "random")
    if stream.stream != "split" or order == "random":
        raise ValueError(f"{stream.title()}: found {stream.stream}; give split with a class_order, or one_vs_rest")
    ordered = list(range(classes)) if order == "fixed" else order
    return [part.tolist() for part in np.array_split(ordered, options["experiences"])]


def class_features(config: TaskMap) -> Matrix:
    """Return the mean features of each class in the test data of the probe network, shape (classes, features)."""
    benchmark = draw_stream(config.probe_network.benchmark, config.probe_network.seed)  # type: ignore[arg-type]
    probe = probe_network(config.probe_network, shape_of(benchmark))
    (experience,) = experiences_of(benchmark, "test")
    batches = task_batches(experience, EmbeddingOptions(data="test"), probe.shape, seed=0)
    body = probe.model.eval()
    features = features_of(body, find_head(body, batches[0], None), batches, run_forward)
    labels = torch.cat([y for _, y in batches])
    means = [features[labels == label].mean(0) for label in labels.unique()]
    return torch.stack(means).numpy()


def _baselines(features: Matrix, tasks: Sequence[Sequence[int]]) -> dict[str, Matrix]:
    means = np.array([features[own].mean(0) for own in tasks])
    return {
        "class means": task_distances(cdist(features, features), tasks),
        "class means cosine": task_distances(cdist(features, features, "cosine"), tasks),
        BASELINE: cdist(means, means),
        "task means cosine": cdist(means, means, "cosine"),
    }


def _parts(tasks: Sequence[Sequence[int]], chains: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Return the places of all tasks, and of those whose classes are all of one branch, if there are ten or more."""
    parts = {"all": list(range(len(tasks)))}
    for name, noun in CLASSES.items():
        own = [place for place, classes in enumerate(tasks) if all(noun in chains[label] for label in classes)]
        if len(own) >= 10:
            parts[name] = own
    return parts


def _between_halves(run: EmbeddedRun, stream: str | None, distance: str) -> list[Matrix]:
    """Return the distances from the tasks of one half to those of the other, for each pair of seeds both ways."""
    by_seed = run.group(stream)
    seeds = sorted(by_seed)
    matrices = []
    for first, second in zip(seeds[::2], seeds[1::2], strict=True):
        matrices.append(_from_to(by_seed[first], by_seed[second], distance))
        matrices.append(_from_to(by_seed[second], by_seed[first], distance))
    return matrices


def _distances_within(run: EmbeddedRun, stream: str) -> dict[str, Matrix]:
    """Return the distances between the tasks of a stream, the mean over seeds, by the distance's name."""
    by_seed = run.group(stream).values()
    return {name: np.mean([_from_to(own, own, name) for own in by_seed], axis=0) for name in DISTANCES}


def _from_to(start: Sequence[TaskEmbedding], end: Sequence[TaskEmbedding], distance: str) -> Matrix:
    measure = DISTANCES[distance]
    return np.array([[measure(a, b) for b in end] for a in start])


def _numbers(value: float, interval: Sequence[float], name: str) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def main() -> None:
    """Write a table about the runs."""
    parser = argparse.ArgumentParser(prog="python -m tools.task_maps", description="Tables about maps of tasks.")
    parser.add_argument("table", choices=["retrieval", "stability", "semantics", "pairs"])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="TABLE.csv")
    parser.add_argument("--resamples", type=int, default=1999, help="of tests and intervals of correlations")
    parser.add_argument("--beta", type=float, nargs="*", help="weights of the prior in place of the runs' own")
    asked = parser.parse_args()
    runs = [EmbeddedRun(folder, beta) for beta in asked.beta or [None] for folder in asked.runs]
    rows: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "retrieval": lambda: [row for run in runs for row in retrieval(run)],
        "stability": lambda: list(stability(runs)),
        "semantics": lambda: [row for run in runs for row in semantics(run, asked.resamples)],
        "pairs": lambda: [row for run in runs for row in pairs(run)],
    }
    pd.DataFrame(rows[asked.table]()).to_csv(asked.output, index=False, float_format="%.6g")
    sys.stdout.write(f"wrote {asked.output}\n")


if __name__ == "__main__":
    main()
