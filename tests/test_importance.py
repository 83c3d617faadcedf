"""Laws 1 to 3 on every estimator, and what each means on a model with a closed form."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mas import fisher_importance, local_mas_importance, mas_importance, random_importance, uniform_importance
from mas.importance import DRAWN, _random_signs, last_layer
from tests import models
from tests.cases import CASES, ESTIMATORS, SAMPLING, SLOW, By, N, classify, make
from tests.conftest import assert_same
from tests.oracles.moments import local_mas_by_loop, moments_by_loop, one_sample
from tests.test_gradients import assert_unchanged, snapshot


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_law_1_equals_its_formula_by_a_loop(estimator, name):
    case = classify(make(name))
    measure, oracle = ESTIMATORS[estimator]
    found = measure(case.model, [case.batch], forward=case.forward)
    case.model.eval()
    assert_same(found, oracle(case.model, case.batch, forward=case.forward))


MEASURES = {
    **{name: pair[0] for name, pair in ESTIMATORS.items()},
    **SAMPLING,
    "local_mas": local_mas_importance,
    "uniform": uniform_importance,
    "random": random_importance,
    "random_mas": partial(random_importance, values="mas"),
}
NO_LOCAL = SLOW - {"added_to_a_view"}  # parameters used by hand, in no layer


@pytest.mark.parametrize("name", ["mlp", "residual", "attention", "two_tasks", "gpt", "avalanche_mlp"])
@pytest.mark.parametrize("estimator", MEASURES)
def test_law_2_batching_cannot_matter(estimator, name):
    if estimator == "local_mas" and name in NO_LOCAL:
        pytest.skip("refused")
    case = classify(make(name))
    measure = MEASURES[estimator]
    whole = measure(case.model, [case.batch], forward=case.forward)
    singles = [one_sample(case.batch, n) for n in range(N)]
    assert_same(measure(case.model, singles, forward=case.forward), whole)
    if estimator not in SAMPLING:  # draws follow the order of samples
        assert_same(measure(case.model, singles[::-1], forward=case.forward), whole)


@pytest.mark.parametrize("name", ["mlp", "batch_norm2d", "dropout", "lstm"])
@pytest.mark.parametrize("estimator", MEASURES)
def test_law_3_measuring_changes_nothing(estimator, name):
    case = classify(make(name))
    before = snapshot(case.model)
    MEASURES[estimator](case.model, [case.batch], forward=case.forward)
    last_layer(case.model, case.batch, forward=case.forward)
    assert_unchanged(before, snapshot(case.model))


CHAIN = [
    *("linear", "mlp", "linear_sequence", "conv1d", "conv2d_all", "conv3d", "conv_transpose2d_all", "embedding"),
    *("batch_norm1d", "batch_norm2d", "layer_norm", "rms_norm", "group_norm", "instance_norm", "prelu"),
    *("lenet", "small_cnn"),
]


@pytest.mark.parametrize("name", CHAIN)
def test_local_mas_is_its_formula_layer_by_layer(name):
    case = make(name)
    found = local_mas_importance(case.model, [case.batch])
    case.model.eval()
    assert_same(found, local_mas_by_loop(case.model, case.batch))
    assert any(t.any() for t in found.values())


@pytest.mark.parametrize("name", sorted(CASES.keys() - NO_LOCAL))
def test_local_mas_for_any_model_batched_or_not(name):
    case = make(name)
    whole = local_mas_importance(case.model, [case.batch], forward=case.forward)
    singles = [one_sample(case.batch, n) for n in range(N)]
    assert_same(local_mas_importance(case.model, singles, forward=case.forward), whole)
    assert_same(local_mas_importance(case.model, singles, forward=case.forward, max_bytes=1), whole)


def test_local_mas_of_relu_layers_is_hebbs_rule():
    """For inputs of one sign, 1/N Σ_n 2 y_i x_j, of weights between layers of ReLU units."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()).double()
    x = torch.rand(50, 4, dtype=torch.float64)
    y = model[:2](x)
    z = model(x)
    found = local_mas_importance(model, [x])
    assert_same(found, found | {"0.weight": 2 * y.T @ x / 50, "2.weight": 2 * z.T @ y / 50, "2.bias": 2 * z.mean(0)})


def test_local_mas_makes_no_backward_pass(monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("a backward pass"))
    case = make("mlp")
    local_mas_importance(case.model, [case.batch])


def test_local_mas_sees_an_addition_in_place_between_layer_and_activation():
    class Added(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            h += 1
            return h.relu()

    model, x = Added(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    y = nn.functional.linear(x, model.weight, model.bias)
    expected = (2 * y[:, :, None] * x[:, None, :]).abs().mean(0).detach()
    assert_same({"w": local_mas_importance(model, [x])["weight"]}, {"w": expected})


@pytest.mark.parametrize("name", sorted(NO_LOCAL))
def test_local_mas_refuses_parameters_outside_of_layers_by_name(name):
    case = make(name)
    with pytest.raises(ValueError, match=r"knows no layer that uses .*(weight|bias|gain).*; freeze"):
        local_mas_importance(case.model, [case.batch], forward=case.forward)
    for p in case.model.parameters():
        p.requires_grad_(False)


def test_local_mas_of_a_diverged_network_is_refused():
    case = make("mlp")
    case.batch[3] = torch.inf
    with pytest.raises(FloatingPointError, match="for sample 3"):
        local_mas_importance(case.model, [case.batch])


def no_grad_inside(model, batch):
    with torch.no_grad():
        return model(batch)


def inference_inside(model, batch):
    with torch.inference_mode():
        return model(batch)


def no_parameter_used(model, batch):
    return torch.stack([row.cumsum(0) for row in batch])


class Decorated(nn.Linear):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


UNLABELLED = {name: measure for name, measure in MEASURES.items() if name != "fisher_empirical"}


@pytest.mark.parametrize("forward", [no_grad_inside, inference_inside, no_parameter_used])
@pytest.mark.parametrize("estimator", UNLABELLED)
def test_a_forward_pass_that_records_nothing_is_an_error_and_not_zeros(estimator, forward):
    case = make("mlp")
    with pytest.raises(ValueError, match=r"parameter that requires a gradient; is it .*run under no_grad\?"):
        UNLABELLED[estimator](case.model, [case.batch], forward=forward)


@pytest.mark.parametrize("estimator", UNLABELLED)
def test_a_model_whose_forward_is_decorated_with_no_grad_is_an_error_and_not_zeros(estimator):
    with pytest.raises(ValueError, match=r"parameter that requires a gradient; is it .*run under no_grad\?"):
        UNLABELLED[estimator](Decorated(4, 3), [torch.randn(5, 4)])


@pytest.mark.parametrize("estimator", MEASURES)
def test_nothing_that_requires_a_gradient_is_an_error(estimator):
    case = classify(make("mlp"))
    case.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        MEASURES[estimator](case.model, [case.batch], forward=case.forward)


@pytest.mark.parametrize("estimator", ["mas", "local_mas", "uniform"])
def test_a_part_under_no_grad_has_zeros_and_the_rest_its_importance(estimator):
    torch.manual_seed(0)
    body, head, x = Decorated(4, 5), nn.Linear(5, 3), torch.randn(6, 4)
    found = MEASURES[estimator](nn.Sequential(body, head), [x])
    assert not found["0.weight"].any()
    expected = MEASURES[estimator](head, [body(x).detach()])
    assert_same({n: found[f"1.{n}"] for n in expected}, expected, tolerance=1e-6)


def tiny_times_huge(dtype=torch.float32):
    """A network of finite output whose importances do not fit float32."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    nn.init.constant_(model[0].weight, 1e-15)
    model[1].weight.data = torch.tensor([[1e30], [-1e30]])
    return model.to(dtype), (torch.tensor([[1e-3]], dtype=dtype), torch.tensor([1]))


def test_weights_of_1e30_are_a_blow_up_for_the_fisher_information():
    torch.manual_seed(0)
    model = models.mlp(4, 6, 3)
    model[2].weight.data *= 1e30  # the logits are finite, the squared gradients of the first layer are not
    with pytest.raises(FloatingPointError, match=r"importance of '0\.weight' is not finite: .*lower learning rate"):
        fisher_importance(model, [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))], labels="empirical")


@pytest.mark.parametrize("reduction", ["sample", "batch"])
@pytest.mark.parametrize("labels", ["exact", *DRAWN, "empirical", "predicted"])
def test_fisher_information_that_does_not_fit_is_a_blow_up(labels, reduction):
    model, batch = tiny_times_huge()
    model[1].weight.data = torch.tensor([[1e25], [-1e25]])  # logits of ±1e7: no class is certain below
    model[0].weight.data.fill_(1e-22)
    with pytest.raises(
        FloatingPointError, match=r"importance of '0\.weight' is not finite: .* too large for torch\.fl"
    ):
        fisher_importance(model, [batch], labels=labels, reduction=reduction)
    model, batch = model.double(), (batch[0].double(), batch[1])
    assert fisher_importance(model, [batch], labels=labels, reduction=reduction)["0.weight"].item() > 1e39


@pytest.mark.parametrize("measure", [mas_importance, partial(mas_importance, reduction="batch")])
def test_mas_importance_that_does_not_fit_is_a_blow_up(measure):
    model, batch = tiny_times_huge()
    with pytest.raises(
        FloatingPointError, match=r"importance of '0\.weight' is not finite: .*use a lower learning rate"
    ):
        measure(model, [batch])
    model, batch = tiny_times_huge(torch.float64)
    assert measure(model, [batch])["0.weight"].item() == pytest.approx(4 * 1e-15 * 1e60 * 1e-6)


def test_local_mas_that_does_not_fit_is_a_blow_up():
    model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1e15]])
    nn.init.constant_(model.weight, 1e15)  # y = 1e30, and 2 y x = 2e45
    with pytest.raises(FloatingPointError, match=r"importance of 'weight' is not finite: .*use a lower learning rate"):
        local_mas_importance(model, [x])
    assert local_mas_importance(model.double(), [x.double()])["weight"].item() == pytest.approx(2e45)


def test_reduction_batch_is_the_moment_of_batch_mean_gradients():
    case = make("mlp")
    expected = moments_by_loop(
        case.model, case.batch[None], lambda out, b: out.square().sum(-1).mean()[None], "abs", lambda m, b: m(b[0])
    )
    assert_same(mas_importance(case.model, [case.batch], reduction="batch"), expected)


def test_uniform_importance_is_one_where_the_output_depends_on_it():
    case = make("avalanche_mlp")
    found = uniform_importance(case.model, [case.batch], forward=case.forward)
    for name, omega in found.items():
        assert (omega == (0.0 if "classifiers.0" in name else 1.0)).all(), name
    with pytest.raises(ValueError, match="gave no sample"):
        uniform_importance(case.model, [])


def test_random_importance_repeats_for_a_seed_and_keeps_a_permutations_values():
    case = make("mlp")
    first, again = (random_importance(case.model, [case.batch]) for _ in range(2))
    other = random_importance(case.model, [case.batch], generator=torch.Generator().manual_seed(5))
    assert_same(first, again, tolerance=0)
    assert (first["0.weight"] != other["0.weight"]).any()
    assert all(((t >= 0) & (t < 1)).all() for t in first.values())
    omega = mas_importance(case.model, [case.batch])
    shuffled = random_importance(case.model, [case.batch], values="mas")
    for name, t in omega.items():
        assert torch.equal(t.flatten().sort().values, shuffled[name].flatten().sort().values)
    assert (omega["0.weight"] != shuffled["0.weight"]).any()
    with pytest.raises(ValueError, match="values is 'normal'; known are 'uniform', 'mas'"):
        random_importance(case.model, [case.batch], values="normal")


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("mlp", {"4.weight", "4.bias"}),
        ("residual", {"out.weight", "out.bias"}),
        ("tied_modules", {"embedding.weight", "out.bias"}),
        ("avalanche_mlp", {f"classifier.classifiers.1.classifier.{part}" for part in ("weight", "bias")}),
    ],
)
def test_the_last_layer_is_the_one_called_last(name, last):
    case = make(name)
    assert last_layer(case.model, case.batch, forward=case.forward) == last
    assert last_layer(nn.DataParallel(case.model), case.batch, forward=case.forward) == last


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


@pytest.mark.parametrize("labels", DRAWN)
def test_drawn_fisher_is_right_on_average_and_repeats_for_a_seed(labels):
    case = classify(make("mlp"))
    expected = fisher_importance(case.model, [case.batch], labels="exact", forward=case.forward)
    many = [case.batch] * 3000
    found = fisher_importance(case.model, many, labels=labels, forward=case.forward)
    for name in expected:
        # 18,000 draws: a standard error below 1.5 % of the largest entry
        assert (found[name] - expected[name]).abs().max() < 0.05 * expected[name].abs().max()
    again = fisher_importance(case.model, many[:3], labels=labels, forward=case.forward)
    assert_same(fisher_importance(case.model, many[:3], labels=labels, forward=case.forward), again, tolerance=0)
    other = torch.Generator().manual_seed(1)
    changed = fisher_importance(case.model, many[:3], labels=labels, forward=case.forward, generator=other)
    assert any((changed[name] != again[name]).any() for name in again)


def test_hutchinson_averaged_over_all_signs_is_exact(monkeypatch):
    case = classify(make("mlp"))
    expected = fisher_importance(case.model, [case.batch], labels="exact", forward=case.forward)
    classes = case.forward(case.model, case.batch).shape[1]
    found = {name: torch.zeros_like(t) for name, t in expected.items()}
    patterns = list(itertools.product((-1, 1), repeat=classes))
    for pattern in patterns:
        signs = torch.tensor(pattern)
        monkeypatch.setattr(
            "mas.importance._random_signs", lambda uniforms, classes, signs=signs: signs.expand(len(uniforms), -1)
        )
        one = fisher_importance(case.model, [case.batch], labels="hutchinson", forward=case.forward)
        for name, value in one.items():
            found[name] += value / len(patterns)
    assert_same(found, expected)


def test_signs_are_fair_independent_and_of_the_sample_alone():
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    signs = _random_signs(uniforms, 12).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(0).abs().max() < 0.03  # a standard error of 0.007
    correlation = signs.T @ signs / len(signs) - torch.eye(12, dtype=torch.float64)
    assert correlation.abs().max() < 0.03
    triples = (signs[:, 0] * signs[:, 1] * signs[:, 2]).mean()
    assert triples.abs() < 0.03
    assert torch.equal(_random_signs(uniforms[5:7], 12).double(), signs[5:7])
    assert torch.equal(_random_signs(uniforms, 4).double(), signs[:, :4])


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


@pytest.mark.parametrize("output", [lambda h: (h, h), lambda h: {"logits": h}])
def test_an_output_that_is_no_tensor_is_one_clear_error(output):
    model = By(lambda m, x: output(m.layer(x)), layer=nn.Linear(4, 3))
    for measure in (mas_importance, fisher_importance):
        with pytest.raises(ValueError, match=r"the model gave (tuple|dict): select (it|them) with forward="):
            measure(model, [torch.randn(5, 4)])


def test_mas_of_one_output_per_sample():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(5, 4)
    squeezed = By(lambda m, x: m.layer(x).squeeze(1), layer=model)
    right = {f"layer.{name}": value for name, value in mas_importance(model, [x]).items()}
    assert_same(mas_importance(squeezed, [x]), right)


def test_a_masked_class_has_no_share_of_the_fisher_information():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    masked = By(lambda m, x: m.layer(x).masked_fill(torch.tensor([False, False, True]), -torch.inf), layer=layer)
    found = fisher_importance(masked, [x])
    two = nn.Linear(4, 2).double()
    two.load_state_dict({name: t[:2] for name, t in layer.state_dict().items()})
    for name, value in fisher_importance(two, [x]).items():
        assert torch.allclose(found[f"layer.{name}"][:2], value, rtol=1e-10)
        assert found[f"layer.{name}"][2].abs().max() == 0


@pytest.mark.parametrize(
    "y", [torch.rand(5), torch.tensor([0, 1, 2, 0, 9]), torch.eye(3)[[0, 1, 2, 0, 1]], [0, 1, 2, 0, 1]]
)
def test_labels_that_are_no_class_numbers_are_one_clear_error(y):
    with pytest.raises(ValueError, match=r"needs y of whole numbers from 0 to 2, shape \(N,\); got"):
        fisher_importance(nn.Linear(4, 3), [(torch.randn(5, 4), y)], labels="empirical")


def test_local_mas_skips_empty_batches_and_takes_outputs_beside_the_samples():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    with_loss = By(lambda m, x: (m.layer(x), m.layer(x).sum().detach() * 0), layer=layer)
    found = local_mas_importance(with_loss, [x[:0], x])
    once = local_mas_importance(layer, [x])
    assert_same(found, {f"layer.{name}": 2 * value for name, value in once.items()}, tolerance=1e-6)
