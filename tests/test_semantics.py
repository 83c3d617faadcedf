"""Semantic distances from WordNet's tree, and rank correlations of distances over pairs of tasks."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tools.semantics import (
    chain_of,
    class_distances,
    correlation_gain,
    first_hypernyms,
    path_distance,
    rank_correlation,
    read_paths,
    task_distances,
    tree_order,
    wordnet_chains,
    write_paths,
    wu_palmer_distance,
)

TABLE = Path(__file__).parent.parent / "docs" / "task2vec" / "wordnet_paths.csv"

# In the format of WordNet's data.noun: dog has two hypernyms, Rex is an instance; "frog" has a pointer before its own.
NOUNS = """  1 This software and database is being provided to you
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which exists @ 00000099 n 0000
00000002 03 n 02 animal 0 beast 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a living thing @ 00000099 n 0000
00000003 05 n 01 dog 0 002 @ 00000002 n 0000 @ 00000006 n 0000 | a pet
00000004 05 n 0b frog 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 002 ~ 00000007 n 0000 @ 00000002 n 0000 | it jumps
00000005 03 n 01 stone 0 001 @ 00000001 n 0000 | it lies
00000006 03 n 01 pet 0 001 @ 00000001 n 0000 | kept at home
00000008 18 n 01 Rex 0 001 @i 00000003 n 0000 | a dog
"""


@pytest.fixture
def noun_file(tmp_path):
    file = tmp_path / "data.noun"
    file.write_text(NOUNS)
    return file


def test_a_noun_hangs_below_its_first_hypernym(noun_file):
    parents = first_hypernyms(noun_file)
    assert parents == {
        "n00000002": "n00000001",
        "n00000003": "n00000002",
        "n00000004": "n00000002",
        "n00000005": "n00000001",
        "n00000006": "n00000001",
        "n00000008": "n00000003",
    }
    assert chain_of("n00000008", parents) == ("n00000008", "n00000003", "n00000002", "n00000001")


def test_the_table_holds_the_chains(noun_file, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("n00000005\tstone, rock\nn00000003\tdog\n")
    paths = wordnet_chains(noun_file, classes)
    assert [(path.id, path.name) for path in paths] == [("n00000003", "dog"), ("n00000005", "stone")]
    write_paths(paths, tmp_path / "table.csv")
    assert read_paths(tmp_path / "table.csv") == paths


def test_a_class_that_wordnet_lacks_is_one_clear_line(noun_file, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("n00000077\tunicorn\n")
    with pytest.raises(ValueError, match=r"n00000077 \(unicorn\) is not in .*data.noun; its ids must be those"):
        wordnet_chains(noun_file, classes)


DOG, FROG, STONE = ("dog", "animal", "entity"), ("frog", "animal", "entity"), ("stone", "entity")


@pytest.mark.parametrize(
    ("a", "b", "steps", "wu_palmer"),
    [(DOG, DOG, 0, 0), (DOG, FROG, 2, 1 - 4 / 6), (DOG, STONE, 3, 1 - 2 / 5), (DOG, DOG[1:], 1, 1 - 4 / 5)],
)
def test_distances_between_classes(a, b, steps, wu_palmer):
    for x, y in ((a, b), (b, a)):
        assert path_distance(x, y) == steps
        assert wu_palmer_distance(x, y) == pytest.approx(wu_palmer, abs=1e-15)


def test_tasks_are_as_far_apart_as_their_classes_on_average():
    between = np.random.default_rng(0).random((5, 5))
    tasks = [[0, 1], [2, 3, 4], [1, 4]]
    found = task_distances(between, tasks)
    for i, j in product(range(3), repeat=2):
        pairs = [between[a, b] for a in tasks[i] for b in tasks[j]]
        assert found[i, j] == pytest.approx(sum(pairs) / len(pairs), abs=1e-15)


def test_the_committed_table_is_a_tree_of_200_classes():
    paths = read_paths(TABLE)
    assert len(paths) == 200
    parents: dict[str, set[str]] = {}
    for path in paths:
        assert path.chain[0] == path.id
        assert path.chain[-1] == "n00001740"  # entity
        for child, parent in zip(path.chain[:-1], path.chain[1:], strict=True):
            parents.setdefault(child, set()).add(parent)
    assert {len(found) for found in parents.values()} == {1}
    steps = class_distances(paths)
    names = [path.name for path in paths]
    lion, cougar, dog, banana = (names.index(name) for name in ("lion", "cougar", "Chihuahua", "banana"))
    assert steps[lion, cougar] < steps[lion, dog] < steps[lion, banana]


def test_in_the_order_of_the_tree_each_branch_is_in_one_piece():
    paths = read_paths(TABLE)
    ordered = [paths[place].chain for place in tree_order(paths)]
    assert sorted(ordered) == sorted(path.chain for path in paths)
    for noun in {noun for chain in ordered for noun in chain}:
        places = [place for place, chain in enumerate(ordered) if noun in chain]
        assert places == list(range(places[0], places[-1] + 1))


def _distances(tasks: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(tasks, 2))
    return np.linalg.norm(points[:, None] - points, axis=2)


def test_the_correlation_is_spearmans_over_pairs_of_different_tasks():
    a, b = _distances(6, 0), _distances(6, 1)
    b[0, 3] += 2.0  # not symmetric
    pairs = [(i, j) for i, j in product(range(6), repeat=2) if i != j]
    expected = spearmanr([a[pair] for pair in pairs], [b[pair] for pair in pairs]).statistic
    a[np.diag_indices(6)] = 100.0  # not looked at
    assert rank_correlation(a, b, resamples=9).rho == pytest.approx(expected, abs=1e-12)


def test_the_p_value_is_that_of_every_order_of_the_tasks():
    a = _distances(6, 0)
    b = a + 0.8 * _distances(6, 1)
    pairs = np.triu_indices(6, 1)
    rho = spearmanr(a[pairs], b[pairs]).statistic
    orders = [np.ix_(order, order) for order in permutations(range(6))]
    as_great = [abs(spearmanr(a[pairs], b[order][pairs]).statistic) >= abs(rho) - 1e-12 for order in orders]
    found = rank_correlation(a, b, resamples=999)
    assert found.p == pytest.approx(np.mean(as_great), abs=4 * np.sqrt(np.mean(as_great) / 999))
    assert 0 < found.p < 1
    assert found.tasks == 6


def test_the_interval_holds_the_correlation_and_narrows_with_more_tasks():
    widths = []
    for tasks in (12, 48):
        a = _distances(tasks, 0)
        noise = _distances(tasks, 1)
        found = rank_correlation(a, a + noise, resamples=499)
        assert found.ci_low < found.rho < found.ci_high
        widths.append(found.ci_high - found.ci_low)
    assert widths[1] < 0.7 * widths[0]


def test_equal_draws_give_equal_results():
    a, b = _distances(8, 0), _distances(8, 1)
    assert rank_correlation(a, b, resamples=9, seed=3) == rank_correlation(a, b, resamples=9, seed=3)


def test_the_gain_is_the_difference_of_two_correlations():
    a, b, target = (_distances(12, seed) for seed in range(3))
    a = a + target
    gain, low, high = correlation_gain(a, b, target, resamples=199)
    expected = rank_correlation(a, target, resamples=9).rho - rank_correlation(b, target, resamples=9).rho
    assert gain == pytest.approx(expected, abs=1e-12)
    assert low < gain < high
    assert correlation_gain(a, a, target, resamples=19) == (0.0, 0.0, 0.0)
