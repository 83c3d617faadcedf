"""Distances between tasks against sums by hand and laws; scores and orders of streams."""

import math

import pytest
import torch

from mas import (
    TaskEmbedding,
    asymmetric_distance,
    correlation_distance,
    cosine_distance,
    curriculum_order,
    distance_matrix,
    embed,
    jensen_shannon,
    kl_divergence,
    least_typical_order,
    normalized_cosine_distance,
    stream_complexity,
    stream_heterogeneity,
)
from mas.task2vec import ALPHA, DISTANCES, complexity
from tests.task2vec_cases import embedding, probe, random_embeddings, task


def cosine(x, y):
    product = sum(p * q for p, q in zip(x, y, strict=True))
    return 1 - product / math.hypot(*x) / math.hypot(*y)


def test_distances_equal_sums_by_hand():
    a, b = embedding(1.0, 3.0), embedding(3.0, 1.0)  # with the scale of 1, precisions (2, 4) and (4, 2)
    symmetric = cosine((2 / 6, 4 / 6), (4 / 6, 2 / 6))
    to_trivial = cosine((2 / 3, 4 / 5), (1 / 3, 1 / 5))
    assert cosine_distance(a, b) == pytest.approx(symmetric)
    assert complexity(a) == pytest.approx(to_trivial)
    assert asymmetric_distance(a, b) == pytest.approx(symmetric - 0.15 * to_trivial)
    assert asymmetric_distance(a, b, alpha=0.5) == pytest.approx(symmetric - 0.5 * to_trivial)
    assert normalized_cosine_distance(a, b) == pytest.approx(cosine((1 / 2, 1 / 4), (1 / 4, 1 / 2)))
    assert kl_divergence(a, b) == pytest.approx(0.5 * (4 / 2 - 1 - math.log(2)) + 0.5 * (2 / 4 - 1 - math.log(0.5)))
    assert correlation_distance(a, b) == pytest.approx(2)
    middle = 2 / (1 / 2 + 1 / 4)
    terms = [middle / h - 1 - math.log(middle / h) for h in (2, 4)]
    assert jensen_shannon(a, b) == pytest.approx(0.25 * 2 * sum(terms))
    assert stream_heterogeneity([a, b, a]) == pytest.approx(2 * symmetric)
    assert stream_complexity([a, b]) == pytest.approx(2 * to_trivial)


def test_a_divergence_equals_torchs():
    a, b = random_embeddings(2)
    posteriors = [torch.distributions.Normal(0, e.precision.rsqrt()) for e in (a, b)]
    expected = torch.distributions.kl_divergence(*posteriors).sum()
    assert kl_divergence(a, b) == pytest.approx(expected.item())


def test_the_correlation_is_that_of_the_variances():
    a, b = random_embeddings(2)
    expected = 1 - torch.corrcoef(torch.stack([1 / a.precision, 1 / b.precision]))[0, 1]
    assert correlation_distance(a, b) == pytest.approx(expected.item())


def test_the_normalized_cosine_is_that_of_the_variances_in_units_of_the_prior():
    a, b = random_embeddings(2)
    expected = 1 - torch.cosine_similarity(a.scale / a.precision, b.scale / b.precision, dim=0)
    assert normalized_cosine_distance(a, b) == pytest.approx(expected.item())


def papers_formula(a, b):
    total = a.vector + b.vector
    x, y = a.vector / total, b.vector / total
    x[total == 0] = y[total == 0] = 0.5
    return 1 - torch.cosine_similarity(x, y, dim=0).item()


@pytest.mark.parametrize(("beta", "least", "most"), [(1e-30, 0, 1e-9), (1e-3, 0.01, 1)])
def test_without_a_prior_it_is_the_papers_formula(beta, least, most):
    a, b = (embed(probe(), task(seed=seed, shift=seed), beta=beta) for seed in (0, 1))
    difference = abs(cosine_distance(a, b) - papers_formula(a, b))
    assert least <= difference < most


# the distance of a task to itself, where it is not 0
TO_ITSELF = {"asymmetric": lambda e: -ALPHA * complexity(e)}
DIRECTED = ("asymmetric", "kl")


@pytest.mark.parametrize("name", DISTANCES)
def test_laws_of_distances(name):
    many = random_embeddings(4)
    matrix = distance_matrix(many, name)
    assert matrix.dtype == torch.float64
    assert torch.allclose(matrix, matrix.T, atol=1e-12) == (name not in DIRECTED)
    to_itself = torch.tensor([TO_ITSELF.get(name, lambda e: 0.0)(e) for e in many], dtype=torch.float64)
    assert (matrix.diagonal() - to_itself).abs().max() < 1e-12
    to_others = matrix.clone().fill_diagonal_(torch.inf)
    assert (to_others > to_itself[:, None] + 1e-6).all()
    again = distance_matrix(many[::-1], name)
    assert torch.allclose(again.flip(0, 1), matrix, atol=1e-12)


@pytest.mark.parametrize("name", DISTANCES)
def test_embeddings_that_cannot_be_compared_are_refused(name):
    measure = DISTANCES[name]
    first = embedding(1.0, 2.0, task="digits")
    others = {
        r"digits and the second are embeddings by different probes \(p, q\)": embedding(1.0, 2.0, probe="q"),
        "digits and letters are embeddings with beta 1e-09 and 0.1": embedding(1.0, 2.0, task="letters", beta=0.1),
        "digits and the second have 2 and 3 filters": embedding(1.0, 2.0, 3.0),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message + ".*; embed both") as error:
            measure(first, other)
        assert "\n" not in str(error.value)
    assert measure(first, embedding(1.0, 3.0, labels="variational")) is not None


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match=r"distance is 'cosin'; known are 'cosine', .*'correlation'$"):
        distance_matrix([embedding(1.0)], "cosin")


def test_the_distance_from_the_trivial_task_grows_with_the_information():
    found = [complexity(embedding(f, 0.0)) for f in (0.0, 0.01, 0.1, 1.0, 10.0, 1000.0)]
    assert found[0] < 1e-15
    assert found == sorted(found)
    assert found[1] > 1e-6
    assert found[-1] == pytest.approx(1 - 1 / math.sqrt(5), abs=1e-2)  # between (1, ½) and (0, ½)
    assert complexity(embedding(7.0, 7.0)) < 1e-15  # the same direction


def test_filters_without_a_precision_do_not_count():
    with_unused = cosine_distance(embedding(1.0, 3.0, 0.0, scale=0.0), embedding(3.0, 1.0, 0.0, scale=0.0))
    assert with_unused == pytest.approx(cosine_distance(embedding(1.0, 3.0, scale=0.0), embedding(3.0, 1.0, scale=0.0)))
    assert cosine_distance(embedding(0.0, scale=0.0), embedding(0.0, scale=0.0)) == 0
    assert cosine_distance(embedding(0.0, scale=0.0), embedding(1.0, scale=0.0)) == 1


def test_a_curriculum_begins_with_the_least_complex():
    tasks = [embedding(1.0, 0.0), embedding(0.1, 0.0), embedding(5.0, 0.0), embedding(0.1, 0.0)]
    assert curriculum_order(tasks) == [1, 3, 0, 2]
    assert curriculum_order([]) == []


@pytest.mark.parametrize("name", DISTANCES)
def test_the_least_typical_task_is_first(name):
    tasks = random_embeddings(5)
    matrix = distance_matrix(tasks, name)
    means = []
    for i in range(5):
        others = [matrix[i, j] + matrix[j, i] for j in range(5) if j != i]
        means.append(sum(others) / 4)
    assert least_typical_order(tasks, distance=name) == sorted(range(5), key=lambda i: -means[i])


def test_orders_of_one_task_or_none():
    assert least_typical_order([embedding(1.0)]) == [0]
    assert least_typical_order([]) == []


def test_an_odd_one_out_is_least_typical():
    tasks = [embedding(1.0, 0.1, 1.0), embedding(1.1, 0.1, 0.9), embedding(0.1, 5.0, 0.1), embedding(0.9, 0.1, 1.1)]
    assert least_typical_order(tasks)[0] == 2


def test_the_distance_of_a_task_to_itself_does_not_count():
    tasks = [embedding(9.0, 0.0), embedding(0.1, 0.0)]  # each is as far from the other: they keep their order
    assert least_typical_order(tasks, distance="asymmetric") == [0, 1]


@pytest.mark.parametrize("name", DISTANCES)
def test_a_value_that_is_not_a_number_stays_one(name):
    scale = torch.full((2,), 0.5, dtype=torch.float64)
    bad = TaskEmbedding(torch.tensor([float("nan"), 1.0], dtype=torch.float64), scale, "probe")
    good = TaskEmbedding(torch.ones(2, dtype=torch.float64), scale, "probe")
    assert math.isnan(DISTANCES[name](bad, good))
