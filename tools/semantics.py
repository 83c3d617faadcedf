"""Semantic distances between classes and tasks, from WordNet's tree of nouns; rank correlations of distances.

`wordnet_chains` reads WordNet's noun file once and leaves a small table, `docs/task2vec/wordnet_paths.csv`;
everything else works from that table.

Usage: python -m tools.semantics DATA_NOUN CLASSES_TXT TABLE

Source: WordNet 3.0, Princeton University; Fellbaum 1998, WordNet: An Electronic Lexical Database.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Matrix = NDArray[np.float64]
Chain = tuple[str, ...]  # a class's id, then its hypernym's, and so on to the root
ClassDistance = Callable[[Chain, Chain], float]

_HYPERNYMS = ("@", "@i")  # of a class, of an instance


class ClassPath(NamedTuple):
    """A class, and where it hangs in WordNet's tree."""

    id: str
    name: str
    chain: Chain


class Correlation(NamedTuple):
    """A rank correlation of two distances over pairs of tasks, with its interval and its p-value."""

    rho: float
    ci_low: float
    ci_high: float
    p: float
    tasks: int


def first_hypernyms(data_noun: Path) -> dict[str, str]:
    """Return the first hypernym of each noun of WordNet's file ``data.noun``, as ids "n01443537"; the root has none."""
    parents = {}
    with data_noun.open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence
                continue
            offset, parent = _first_pointer(line.split(" | ")[0].split())
            if parent is not None:
                parents[f"n{offset}"] = f"n{parent}"
    return parents


def chain_of(noun: str, parents: dict[str, str]) -> Chain:
    """Return a noun's id and those of its hypernyms up to the root."""
    chain = [noun]
    while chain[-1] in parents:
        chain.append(parents[chain[-1]])
    return tuple(chain)


def wordnet_chains(data_noun: Path, classes: Path) -> list[ClassPath]:
    """Return the classes of a file of lines "id<TAB>names" with their chains, in the order of their ids.

    A noun with several hypernyms is hung below the first, so that there is one path to the root.

    Raises:
        ValueError: a class is no noun of WordNet 3.0.
    """
    parents = first_hypernyms(data_noun)
    found = []
    for line in sorted(classes.read_text().splitlines()):
        noun, _, names = line.partition("\t")
        if noun not in parents:
            raise ValueError(f"{classes}: {noun} ({names}) is not in {data_noun}; its ids must be those of WordNet 3.0")
        found.append(ClassPath(noun, names.split(",")[0], chain_of(noun, parents)))
    return found


def write_paths(paths: Sequence[ClassPath], table: Path) -> None:
    """Write classes as a CSV table with the columns id, name and chain, whose ids have spaces between them."""
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ClassPath._fields)
        writer.writerows((path.id, path.name, " ".join(path.chain)) for path in paths)


def read_paths(table: Path) -> list[ClassPath]:
    """Return the classes of the table that `write_paths` wrote."""
    with table.open(newline="") as file:
        return [ClassPath(row["id"], row["name"], tuple(row["chain"].split())) for row in csv.DictReader(file)]


def path_distance(a: Chain, b: Chain) -> float:
    """Return the number of steps from one class to the other, through the nearest common hypernym."""
    return float(len(a) + len(b) - 2 * _common(a, b))


def wu_palmer_distance(a: Chain, b: Chain) -> float:
    """Return 1 − 2 d(common) / (d(a) + d(b)), d the depth of a noun, 1 at the root: from 0 to 1.

    Source: Wu and Palmer 1994, Verb semantics and lexical selection.
    """
    return 1 - 2 * _common(a, b) / (len(a) + len(b))


def tree_order(paths: Sequence[ClassPath]) -> list[int]:
    """Return the places of the classes in the order of a walk down the tree: those of one branch stand together."""
    return sorted(range(len(paths)), key=lambda place: paths[place].chain[::-1])


def class_distances(paths: Sequence[ClassPath], distance: ClassDistance = path_distance) -> Matrix:
    """Return the distances of all pairs of classes, shape (classes, classes)."""
    return np.array([[distance(a.chain, b.chain) for b in paths] for a in paths])


def task_distances(between_classes: Matrix, tasks: Sequence[Sequence[int]]) -> Matrix:
    """Return the mean distance over pairs of classes of two tasks, shape (tasks, tasks).

    Args:
        between_classes: shape (classes, classes).
        tasks: the classes of each.
    """
    return np.array([[between_classes[np.ix_(a, b)].mean() for b in tasks] for a in tasks])


def rank_correlation(a: Matrix, b: Matrix, *, resamples: int = 9999, seed: int = 0) -> Correlation:
    """Return Spearman's correlation of two matrices of distances, over all pairs of different tasks.

    Pairs that share a task are not independent. The p-value (two-sided) is of the Mantel test, which permutes the
    tasks of one matrix; the 95 % interval is of a bootstrap that draws tasks, and leaves out pairs of a task with
    itself.

    Args:
        a, b: shape (tasks, tasks); not symmetric where the way matters. Their diagonals are not looked at.
        resamples: permutations of the test, and draws of the bootstrap.
        seed: of both.

    Source: Mantel 1967, The detection of disease clustering and a generalized regression approach.
    """
    generator = np.random.default_rng(seed)
    tasks = len(a)
    rho = _spearman(a, b, np.arange(tasks))
    orders = [generator.permutation(tasks) for _ in range(resamples)]
    permuted = _permuted_correlations(a, b, orders)
    as_great = np.count_nonzero(np.abs(permuted) >= abs(rho) - 1e-12)
    drawn = [_spearman(a, b, draw) for draw in _draws(tasks, resamples, seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Correlation(rho, float(low), float(high), float((1 + as_great) / (1 + resamples)), tasks)


def correlation_gain(
    a: Matrix, baseline: Matrix, target: Matrix, *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float, float]:
    """Return by how much the correlation of a with a target exceeds a baseline's, and its 95 % interval.

    The bootstrap draws tasks, the same ones for both correlations.

    Args:
        a, baseline, target: distances, shape (tasks, tasks).
        resamples, seed: as for `rank_correlation`.
    """

    def gain(tasks: NDArray[np.int64]) -> float:
        return _spearman(a, target, tasks) - _spearman(baseline, target, tasks)

    drawn = [gain(draw) for draw in _draws(len(a), resamples, seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return gain(np.arange(len(a))), float(low), float(high)


def _first_pointer(fields: Sequence[str]) -> tuple[str, str | None]:
    """Return the offset of a noun and that of its first hypernym, from the fields of its line."""
    words = int(fields[3], 16)
    pointers = fields[5 + 2 * words :]  # of four fields each: symbol, offset, part of speech, source and target
    for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True):
        if symbol in _HYPERNYMS:
            return fields[0], offset
    return fields[0], None


def _common(a: Chain, b: Chain) -> int:
    """Return the number of nouns on both chains: the depth of the nearest common hypernym."""
    return len({*a} & {*b})


def _spearman(a: Matrix, b: Matrix, tasks: NDArray[np.int64]) -> float:
    """Return the rank correlation over pairs of different tasks among those drawn."""
    different = tasks[:, None] != tasks
    pairs = np.ix_(tasks, tasks)
    x, y = rankdata(a[pairs][different]), rankdata(b[pairs][different])
    return float(np.corrcoef(x, y)[0, 1])


def _draws(tasks: int, number: int, seed: int) -> list[NDArray[np.int64]]:
    """Return draws of tasks with replacement; those of one or two tasks, which have no correlation, are left out."""
    generator = np.random.default_rng(seed)
    draws = [generator.integers(tasks, size=tasks) for _ in range(number)]
    return [draw for draw in draws if len(np.unique(draw)) > 2]


def _permuted_correlations(a: Matrix, b: Matrix, orders: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return the rank correlations of a with b, its tasks in each of the orders."""
    x, y = _standard_ranks(a), _standard_ranks(b)
    return np.array([(x * y[np.ix_(order, order)]).sum() for order in orders])


def _standard_ranks(distances: Matrix) -> Matrix:
    """Return the ranks of the distances off the diagonal, centred and of unit length; 0 on the diagonal."""
    different = ~np.eye(len(distances), dtype=bool)
    ranks = rankdata(distances[different])
    centred = ranks - ranks.mean()
    found = np.zeros_like(distances)
    found[different] = centred / np.linalg.norm(centred)
    return found


def main() -> None:
    """Write the table of the classes of a file."""
    parser = argparse.ArgumentParser(prog="python -m tools.semantics", description="Place classes in WordNet's tree.")
    parser.add_argument("data_noun", type=Path, help="data.noun of WordNet 3.0")
    parser.add_argument("classes", type=Path, help="lines of id<TAB>names")
    parser.add_argument("table", type=Path, help="the CSV table to write")
    asked = parser.parse_args()
    write_paths(wordnet_chains(asked.data_noun, asked.classes), asked.table)


if __name__ == "__main__":
    main()
