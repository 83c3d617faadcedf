"""Laws 1 to 3 on every estimator, and what each means on a model with a closed form."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mas import fisher_importance, mas_importance
from tests.cases import CASES, ESTIMATORS, SAMPLING, N, classify, make
from tests.conftest import assert_same
from tests.oracles.moments import one_sample
from tests.test_gradients import assert_unchanged, snapshot


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_law_1_equals_its_formula_by_a_loop(estimator, name):
    case = classify(make(name))
    measure, oracle = ESTIMATORS[estimator]
    found = measure(case.model, [case.batch], forward=case.forward)
    case.model.eval()
    assert_same(found, oracle(case.model, case.batch, forward=case.forward))


@pytest.mark.parametrize("name", ["mlp", "residual", "attention", "two_tasks"])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, *SAMPLING])
def test_law_2_batching_cannot_matter(estimator, name):
    case = classify(make(name))
    measure = {**{key: pair[0] for key, pair in ESTIMATORS.items()}, **SAMPLING}[estimator]
    whole = measure(case.model, [case.batch], forward=case.forward)
    singles = [one_sample(case.batch, n) for n in range(N)]
    assert_same(measure(case.model, singles, forward=case.forward), whole)
    if estimator in ESTIMATORS:  # draws follow the order of samples
        assert_same(measure(case.model, singles[::-1], forward=case.forward), whole)


@pytest.mark.parametrize("name", ["mlp", "batch_norm2d", "dropout", "lstm"])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, *SAMPLING])
def test_law_3_measuring_changes_nothing(estimator, name):
    case = classify(make(name))
    measure = {**{key: pair[0] for key, pair in ESTIMATORS.items()}, **SAMPLING}[estimator]
    before = snapshot(case.model)
    measure(case.model, [case.batch], forward=case.forward)
    assert_unchanged(before, snapshot(case.model))


def test_mas_needs_no_labels():
    case = make("mlp")
    labelled = DataLoader(TensorDataset(case.batch, torch.zeros(N)), 4)
    expected = mas_importance(case.model, [case.batch])
    assert_same(mas_importance(case.model, labelled), expected)
    assert_same(mas_importance(case.model, [(case.batch[:2],), (case.batch[2:],)]), expected)


def test_mas_of_a_linear_model_is_its_closed_form():
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = (2 * model(x)[:, :, None] * x[:, None, :]).abs().mean(0)
    assert_same(mas_importance(model, [x]), {"weight": expected})


def test_batch_mean_gradients_would_give_another_number():
    """What other libraries compute: the sign cancels between samples."""
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(128, 3, dtype=torch.float64)
    exact = mas_importance(model, [x])["weight"]
    (mean,) = torch.autograd.grad(model(x).square().sum(1).mean(), model.parameters())
    assert (mean.abs() <= exact + 1e-12).all()
    assert exact.sum() > 1.1 * mean.abs().sum()


def test_exact_fisher_of_logistic_regression_is_its_closed_form():
    """For logits (0, w x): F = mean of p (1 - p) x²."""
    weight = torch.tensor([[0.7]], dtype=torch.float64)

    class Logistic(nn.Linear):
        def forward(self, x):
            return torch.cat([torch.zeros_like(x), super().forward(x)], 1)

    model = Logistic(1, 1, bias=False).double()
    model.weight.data = weight
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
    p = torch.sigmoid(weight * x)
    assert_same(fisher_importance(model, [x]), {"weight": (p * (1 - p) * x**2).mean(0, keepdim=True)})


def test_sampled_fisher_is_right_on_average_and_repeats_for_a_seed():
    case = classify(make("mlp"))
    expected = fisher_importance(case.model, [case.batch], "exact", case.forward)
    many = [case.batch] * 3000
    found = fisher_importance(case.model, many, "sampled", case.forward)
    for name in expected:
        # 18,000 draws: a standard error below 1.5 % of the largest entry
        assert (found[name] - expected[name]).abs().max() < 0.05 * expected[name].abs().max()
    again = fisher_importance(case.model, many[:3], "sampled", case.forward)
    assert_same(fisher_importance(case.model, many[:3], "sampled", case.forward), again, tolerance=0)
    other = torch.Generator().manual_seed(1)
    changed = fisher_importance(case.model, many[:3], "sampled", case.forward, generator=other)
    assert any((changed[name] != again[name]).any() for name in again)


def test_max_samples_is_the_first_samples():
    case = classify(make("mlp"))
    for measure in (mas_importance, fisher_importance):
        expected = measure(case.model, [tuple(t[:4] for t in case.batch)], forward=case.forward)
        singles = [one_sample(case.batch, n) for n in range(N)]
        assert_same(measure(case.model, singles, forward=case.forward, max_samples=4), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: mas_importance(m, [x], norm="l1"), "norm is 'l1'; known are 'squared_l2', 'l2'"),
        (lambda m, x: fisher_importance(m, [x], labels="true"), "labels is 'true'; known are 'exact'"),
        (lambda m, x: fisher_importance(m, [x], labels="empirical"), r"needs batches of \(x, y\)"),
        (lambda m, x: fisher_importance(nn.Unflatten(1, (3, 1)), [x]), "no parameter"),
        (lambda m, x: fisher_importance(nn.Sequential(m, nn.Unflatten(1, (3, 1))), [x]), r"\(6, 3, 1\)"),
        (lambda m, x: mas_importance(m, iter([])), "gave no sample"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    case = make("mlp")
    with pytest.raises(ValueError, match=message):
        call(case.model, case.batch)
