"""Laws 5 to 7: the gradient is the value's, many quadratics are one, growth is safe."""

import copy

import pytest
import torch
from torch import nn

from mas import QuadraticPenalty
from tests.cases import CASES, make

RULES = ["sum", "ema", "decay", "quadratics"]


def random_like(model, scale=1.0, positive=False):
    drawn = {name: scale * torch.randn_like(p) for name, p in model.named_parameters()}
    return {name: t.abs() for name, t in drawn.items()} if positive else drawn


def after_tasks(model, rule, tasks=3, strength=0.7):
    """A penalty after several tasks, with importances that are zero in places."""
    penalty = QuadraticPenalty(strength, rule, 0.3)
    history = []
    for _ in range(tasks):
        anchor, omega = random_like(model), random_like(model, positive=True)
        omega = {name: t * (torch.rand_like(t) > 0.3) for name, t in omega.items()}
        penalty.consolidate(anchor, omega)
        history.append((anchor, omega))
    return penalty, history


def quadratic(model, anchor, omega):
    params = dict(model.named_parameters())
    return sum((omega[n] * (params[n] - anchor[n]) ** 2).sum() for n in omega)


@pytest.mark.parametrize("name", ["mlp", "residual", "tied_modules", "attention"])
@pytest.mark.parametrize("rule", RULES)
class TestGradient:
    def test_law_5_fused_gradient_is_autograds(self, rule, name):
        model = make(name).model
        penalty, _ = after_tasks(model, rule)
        expected = torch.autograd.grad(penalty.value(model), list(model.parameters()))
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.25)
        value = penalty.add_gradient_(model)
        for p, g in zip(model.parameters(), expected, strict=True):
            assert torch.allclose(p.grad, g + 0.25, rtol=1e-12, atol=1e-12)
        assert value.item() == pytest.approx(penalty.value(model).item(), rel=1e-12)
        assert not value.requires_grad

    def test_law_5_in_pieces(self, rule, name, monkeypatch):
        monkeypatch.setattr("mas.penalty._PIECE", 5)  # numbers, so that most parameters are cut
        self.test_law_5_fused_gradient_is_autograds(rule, name)

    def test_law_5_and_finite_differences(self, rule, name):
        model = make(name).model
        penalty, _ = after_tasks(model, rule)
        p = next(model.parameters())
        penalty.add_gradient_(model)
        step, index = 1e-5, (0,) * p.ndim
        with torch.no_grad():
            p[index] += step
            up = penalty.value(model)
            p[index] -= 2 * step
            down = penalty.value(model)
        assert ((up - down) / (2 * step)).item() == pytest.approx(p.grad[index].item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_law_6_many_quadratics_are_one(tasks, name):
    model = make(name).model.requires_grad_()
    penalty, history = after_tasks(model, "quadratics", tasks)
    explicit = 0.7 * sum(quadratic(model, anchor, omega) for anchor, omega in history)
    assert penalty.value(model).item() == pytest.approx(explicit.item(), rel=1e-10)
    expected = torch.autograd.grad(explicit, list(model.parameters()), allow_unused=True)
    penalty.add_gradient_(model)
    for p, g in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-10, atol=1e-10)


def test_law_6_size_does_not_grow_with_tasks():
    model = make("mlp").model
    sizes = [
        sum(
            t.numel()
            for key in ("importance", "anchor")
            for t in after_tasks(model, "quadratics", n)[0].state_dict()[key].values()
        )
        for n in (1, 5)
    ]
    assert sizes[0] == sizes[1] == 2 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", lambda a, b, c: a + b + c),
        ("ema", lambda a, b, c: 0.3 * (0.3 * a + 0.7 * b) + 0.7 * c),
        ("decay", lambda a, b, c: 0.3 * (0.3 * a + b) + c),
        ("quadratics", lambda a, b, c: a + b + c),
    ],
)
def test_how_importance_accumulates(rule, expected):
    model = make("mlp").model
    penalty, history = after_tasks(model, rule)
    for name in penalty.importance:
        omegas = [omega[name] for _, omega in history]
        assert torch.allclose(penalty.importance[name], expected(*omegas), rtol=1e-12)
        if rule != "quadratics":
            assert torch.equal(penalty.anchor[name], history[-1][0][name])


def test_nothing_to_protect_is_no_penalty():
    model = make("mlp").model
    penalty = QuadraticPenalty()
    assert penalty.value(model) == 0
    assert penalty.add_gradient_(model) == 0
    assert all(p.grad is None for p in model.parameters())


def test_strength_zero_touches_nothing():
    model = make("mlp").model
    penalty, _ = after_tasks(model, "sum", strength=0.0)
    assert penalty.add_gradient_(model) == 0
    assert all(p.grad is None for p in model.parameters())


class Growing(nn.Module):
    def __init__(self, classes, heads):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.out = nn.Linear(4, classes)
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(heads))


@pytest.mark.parametrize("rule", RULES)
class TestGrowth:
    def test_law_7_new_parameters_are_not_penalised(self, rule):
        small, large = Growing(2, 1).double(), Growing(5, 3).double()
        penalty, _ = after_tasks(small, rule, strength=0.7)
        with torch.no_grad():  # the large model begins where the small one stands
            for name, p in small.named_parameters():
                dict(large.named_parameters())[name][tuple(slice(0, n) for n in p.shape)] = p
        assert penalty.value(large).item() == pytest.approx(penalty.value(small).item(), rel=1e-12)
        expected = torch.autograd.grad(penalty.value(large), list(large.parameters()), allow_unused=True)
        penalty.add_gradient_(large)
        penalty.add_gradient_(small)
        for p, g in zip(large.parameters(), expected, strict=True):
            assert (p.grad is None) == (g is None)
            assert g is None or torch.allclose(p.grad, g, rtol=1e-12, atol=1e-12)
        assert torch.equal(large.out.weight.grad[:2], small.out.weight.grad)
        assert not large.out.weight.grad[2:].any()
        assert large.heads[2].weight.grad is None

    def test_law_7_old_heads_keep_their_importance(self, rule):
        model = Growing(2, 1).double()
        penalty, _ = after_tasks(model, rule)
        before = {name: t.clone() for name, t in penalty.importance.items()}
        grown = Growing(2, 2).double()
        omega = {name: torch.ones_like(p) for name, p in grown.named_parameters()}
        omega |= {name: torch.zeros_like(t) for name, t in omega.items() if name.startswith("heads.0")}
        penalty.consolidate(grown, omega)
        for name in ("heads.0.weight", "heads.0.bias"):
            assert torch.equal(penalty.importance[name], before[name])
        assert torch.equal(penalty.importance["heads.1.weight"], torch.ones(2, 4, dtype=torch.float64))

    def test_law_7_new_classes_leave_old_rows_importance(self, rule):
        model = Growing(2, 0).double()
        penalty, _ = after_tasks(model, rule)
        before = penalty.importance["out.weight"].clone()
        grown = Growing(3, 0).double()
        omega = random_like(grown, positive=True)
        omega["out.weight"][:2] = 0  # the new task says nothing of old rows
        penalty.consolidate(grown, omega)
        kept = {"sum": 1.0, "quadratics": 1.0, "decay": 0.3, "ema": 0.3}[rule]
        assert torch.allclose(penalty.importance["out.weight"][:2], kept * before, rtol=1e-12)
        fresh = 0.7 if rule == "ema" else 1.0
        assert torch.allclose(penalty.importance["out.weight"][2:], fresh * omega["out.weight"][2:], rtol=1e-12)
        assert penalty.anchor["out.weight"].shape == (3, 4)

    def test_state_dict_round_trip_and_no_alias(self, rule, tmp_path):
        model = Growing(2, 1).double()
        penalty, _ = after_tasks(model, rule)
        torch.save(penalty.state_dict(), tmp_path / "penalty.pt")
        other = QuadraticPenalty()
        other.load_state_dict(torch.load(tmp_path / "penalty.pt", weights_only=True))
        assert other.value(model).item() == penalty.value(model).item()
        twin = copy.deepcopy(penalty)
        penalty.consolidate(*[random_like(model), random_like(model, positive=True)])
        twin.load_state_dict(other.state_dict())
        assert twin.value(model).item() == other.value(model).item()


def test_consolidating_takes_copies():
    model = make("mlp").model
    penalty = QuadraticPenalty()
    omega = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    penalty.consolidate(model, omega)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
        for t in omega.values():
            t.zero_()
    assert penalty.value(model).item() == sum(p.numel() for p in model.parameters())


def test_frozen_parameters_are_left_out():
    model = make("mlp").model
    penalty, _ = after_tasks(model, "sum")
    first = next(model.parameters()).requires_grad_(False)
    penalty.add_gradient_(model)
    assert first.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: QuadraticPenalty(-1.0), "strength is -1.0; give a number of at least 0"),
        (lambda m: QuadraticPenalty(float("nan")), "strength is nan"),
        (lambda m: QuadraticPenalty(1.0, "mean"), "accumulate is 'mean'; known are 'sum'"),
        (lambda m: QuadraticPenalty(1.0, "ema", 1.5), "factor is 1.5"),
        (lambda m: QuadraticPenalty().consolidate(m, {"x": torch.ones(1)}), "anchor none"),
        (lambda m: QuadraticPenalty().consolidate(m, {"0.bias": torch.ones(1)}), r"shape \(1,\) and its anchor \(6,\)"),
        (lambda m: QuadraticPenalty().consolidate(m, {"0.bias": -torch.ones(6)}), "negative"),
        (lambda m: QuadraticPenalty().load_state_dict({"strength": 1.0}), "lacks accumulate, anchor"),
        (lambda m: after_tasks(m, "sum")[0].value(nn.Linear(2, 2)), "which the model lacks"),
        (lambda m: after_tasks(nn.Linear(4, 9), "sum")[0].value(nn.Linear(4, 3)), "may grow, not shrink"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(make("mlp").model)


def test_importance_that_is_not_finite_is_a_blow_up():
    with pytest.raises(FloatingPointError, match=r"importance of '0.bias' has values that are not finite"):
        QuadraticPenalty().consolidate(make("mlp").model, {"0.bias": torch.full((6,), torch.nan)})


def test_a_refused_task_leaves_the_penalty_as_it_was():
    model = make("mlp").model
    penalty, _ = after_tasks(model, "sum")
    before = penalty.value(model).item()
    omega = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    omega["4.bias"] = -omega["4.bias"]
    with pytest.raises(ValueError, match="negative"):
        penalty.consolidate(model, omega)
    assert penalty.value(model).item() == before


def test_names_do_not_depend_on_how_the_model_is_wrapped():
    model = make("mlp").model
    penalty = QuadraticPenalty(0.5)
    omega = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    penalty.consolidate(nn.DataParallel(model), omega)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    expected = 0.5 * model[0].weight.numel()
    for wrapped in (model, nn.DataParallel(model), torch.compile(model, backend="aot_eager")):
        assert penalty.value(wrapped).item() == pytest.approx(expected)
        assert penalty.add_gradient_(wrapped).item() == pytest.approx(expected)


def two_dtypes(model, dtype):
    penalty = QuadraticPenalty(0.5)
    anchor = {n: torch.zeros_like(p, dtype=dtype) for n, p in model.named_parameters()}
    penalty.consolidate(anchor, {n: torch.ones_like(p, dtype=dtype) for n, p in model.named_parameters()})
    return penalty


def test_nothing_to_pull_on_when_all_is_frozen():
    model = nn.Linear(4, 3)
    penalty = two_dtypes(model, torch.float32)
    penalty.constant = 3.0
    model.requires_grad_(False)
    assert penalty.add_gradient_(model).item() == penalty.value(model).item() == 1.5


@pytest.mark.parametrize("piece", [2**18, 5])
@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.to(memory_format=torch.channels_last)])
def test_other_dtypes_and_memory_formats_are_as_others(change, piece, monkeypatch):
    monkeypatch.setattr("mas.penalty._PIECE", piece)
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3)
    penalty = two_dtypes(model, torch.float32)
    change(model)
    value = penalty.add_gradient_(model)
    assert value.item() == pytest.approx(0.5 * sum(p.square().sum() for p in model.parameters()).item(), rel=1e-6)
    for p in model.parameters():
        assert torch.allclose(p.grad, p)


def test_quadratics_of_zero_and_of_huge_importance_have_a_finite_constant():
    for dtype, value in ((torch.float16, 0.0), (torch.float32, 1e20)):
        penalty = QuadraticPenalty(1.0, "quadratics")
        for at in (0.0, 1.0):
            penalty.consolidate({"w": torch.full((2,), at, dtype=dtype)}, {"w": torch.full((2,), value, dtype=dtype)})
        assert penalty.constant == pytest.approx(2 * value / 2)  # per weight: Ω Ω / 2Ω · 1²


def test_a_parameter_that_shrank_is_one_clear_error_in_consolidate_too():
    penalty = QuadraticPenalty()
    penalty.consolidate({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"shape \(2,\), its anchor \(3,\); a parameter may grow, not shrink"):
        penalty.consolidate({"w": torch.zeros(2)}, {"w": torch.ones(2)})
