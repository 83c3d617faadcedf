"""Laws 5 to 7: the gradient is the value's, many quadratics are one, growth is safe."""

import copy

import pytest
import torch
from torch import nn

from mas import QuadraticPenalty
from mas.penalty import _add_fused, _add_piecewise
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
        (lambda m: QuadraticPenalty(-1.0), "strength is -1.0; give a finite number of at least 0"),
        (lambda m: QuadraticPenalty(float("nan")), "strength is nan"),
        (lambda m: QuadraticPenalty(float("inf")), "strength is inf; give a finite number of at least 0"),
        (lambda m: QuadraticPenalty("1.0"), "strength is '1.0'; give a finite number of at least 0"),
        (lambda m: QuadraticPenalty(1.0, ["sum"]), r"accumulate is \['sum'\]; known are 'sum'"),
        (lambda m: QuadraticPenalty(1.0, "mean"), "accumulate is 'mean'; known are 'sum'"),
        (lambda m: QuadraticPenalty(1.0, "ema", 1.5), "factor is 1.5"),
        (lambda m: QuadraticPenalty(1.0, "ema", float("nan")), "factor is nan"),
        (lambda m: QuadraticPenalty().consolidate(m, {"x": torch.ones(1)}), "anchor none"),
        (lambda m: QuadraticPenalty().consolidate(m, {"0.bias": torch.ones(1)}), r"shape \(1,\) and its anchor \(6,\)"),
        (lambda m: QuadraticPenalty().consolidate(m, {"0.bias": -torch.ones(6)}), "negative"),
        (lambda m: QuadraticPenalty().consolidate(m, {"0.bias": torch.ones(6) * 1j}), "'0.bias' is complex"),
        (lambda m: QuadraticPenalty().load_state_dict({"strength": 1.0}), "lacks accumulate, anchor"),
        (lambda m: QuadraticPenalty().load_state_dict(None), "the state of a penalty is of type NoneType; give a dict"),
        (lambda m: after_tasks(m, "sum")[0].value(nn.Linear(2, 2)), "which the model lacks"),
        (lambda m: after_tasks(nn.Linear(4, 9), "sum")[0].value(nn.Linear(4, 3)), "may grow, not shrink"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(make("mlp").model)


def test_importance_that_is_not_finite_is_a_blow_up():
    message = r"importance of '0\.bias' has values that are not finite; .*use a lower learning rate or strength"
    with pytest.raises(FloatingPointError, match=message):
        QuadraticPenalty().consolidate(make("mlp").model, {"0.bias": torch.full((6,), torch.nan)})


def assert_same_state(found, expected):
    """Equal to the bit, dtypes and order included."""
    assert found.keys() == expected.keys()
    for key in ("importance", "anchor"):
        assert list(found[key]) == list(expected[key])
        for name, tensor in expected[key].items():
            assert found[key][name].dtype == tensor.dtype
            assert torch.equal(found[key][name], tensor)
    settings = expected.keys() - {"importance", "anchor"}
    assert {key: found[key] for key in settings} == {key: expected[key] for key in settings}


def spoilt(tensors, change):
    """Change the last tensor, so that all others are joined before it."""
    last = list(tensors)[-1]
    return tensors | {last: change(tensors[last])}


def nan_in(tensor):
    return torch.where(torch.arange(tensor.numel()).view(tensor.shape) == 0, torch.nan, tensor)


SPOILT = {
    "negative": (lambda a, o: (a, spoilt(o, torch.neg)), ValueError, "importance of '4.bias' has negative values"),
    "importance": (lambda a, o: (a, spoilt(o, nan_in)), FloatingPointError, "importance of '4.bias' has values that"),
    "nan": (lambda a, o: (spoilt(a, nan_in), o), FloatingPointError, "the anchor of '4.bias' has values that are not"),
    "inf": (lambda a, o: (spoilt(a, lambda t: t / 0), o), FloatingPointError, "the anchor of '4.bias' has values that"),
    "shrunk": (lambda a, o: (spoilt(a, lambda t: t[:2]), spoilt(o, lambda t: t[:2])), ValueError, "grow, not shrink"),
    "huge": (
        lambda a, o: (a, spoilt(o, lambda t: torch.full_like(t, 1e308))),
        FloatingPointError,
        "the sum over tasks of the importance of '4.bias' has values that are not finite; if the network has diverged",
    ),
}


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        (rule, what) for rule in RULES for what in SPOILT if (rule, what) != ("ema", "huge")
    ],  # an average cannot overflow
)
def test_a_refused_task_leaves_the_penalty_as_it_was(rule, what):
    change, error, message = SPOILT[what]
    model = make("mlp").model
    penalty, _ = after_tasks(model, rule)
    if what == "huge":
        penalty.factor = 1.0
        penalty.importance["4.bias"].fill_(1e308)
    before = copy.deepcopy(penalty.state_dict())
    anchor, omega = random_like(model), random_like(model, positive=True)
    with pytest.raises(error, match=message):
        penalty.consolidate(*change(anchor, omega))
    assert_same_state(penalty.state_dict(), before)
    penalty.consolidate(anchor, omega)
    assert (penalty.importance["0.weight"] != before["importance"]["0.weight"]).any()


def test_a_constant_that_is_not_finite_is_a_blow_up_and_leaves_the_penalty_as_it_was():
    penalty = QuadraticPenalty(1.0, "quadratics")
    penalty.consolidate({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    before = copy.deepcopy(penalty.state_dict())
    with pytest.raises(FloatingPointError, match="the penalty of past tasks at their joint anchor is inf; if the netw"):
        penalty.consolidate({"a": torch.ones(1), "b": torch.tensor([1e30])}, {"a": torch.ones(1), "b": torch.ones(1)})
    assert_same_state(penalty.state_dict(), before)


def test_an_anchor_that_nothing_weighs_may_be_anything():
    """A parameter without importance is not protected, so its value does not matter."""
    penalty = QuadraticPenalty()
    penalty.consolidate({"a": torch.ones(2), "b": torch.full((2,), torch.nan)}, {"a": torch.ones(2)})
    assert list(penalty.anchor) == ["a"]


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("omega_dtype", [*FLOATS, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("anchor_dtype", FLOATS)
@pytest.mark.parametrize("rule", RULES)
def test_the_anchor_keeps_the_weights_own_values_whatever_the_importance_is(rule, anchor_dtype, omega_dtype):
    """Against the same tasks in float64 throughout; the numbers of importance are whole, so exact in each dtype."""
    torch.manual_seed(0)
    penalty, exact = QuadraticPenalty(1.0, rule, 0.3), QuadraticPenalty(1.0, rule, 0.3)
    for _ in range(2):
        anchor = {"w": torch.randn(4, 3, dtype=torch.float64).to(anchor_dtype), "b": torch.tensor(0.1).to(anchor_dtype)}
        omega = {"w": torch.randint(2, (4, 3)).to(omega_dtype), "b": torch.tensor(1).to(omega_dtype)}
        penalty.consolidate(anchor, omega)
        exact.consolidate(*[{name: t.double() for name, t in tensors.items()} for tensors in (anchor, omega)])
        if rule != "quadratics":
            assert all(torch.equal(penalty.anchor[n], t.to(penalty.anchor[n].dtype)) for n, t in anchor.items())
    widest = torch.promote_types(torch.promote_types(anchor_dtype, omega_dtype), torch.float32)
    for found, right in ((penalty.importance, exact.importance), (penalty.anchor, exact.anchor)):
        assert {t.dtype for t in found.values()} == {widest}
        assert all(torch.allclose(found[n].double(), t, rtol=1e-6, atol=1e-7) for n, t in right.items())
    assert penalty.constant == pytest.approx(exact.constant, rel=1e-5)


def test_whole_numbers_for_anchor_and_importance_are_kept_as_float32():
    penalty = QuadraticPenalty(0.5)
    penalty.consolidate({"weight": torch.tensor([[3]])}, {"weight": torch.tensor([[2]])})
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.5)
    assert penalty.anchor["weight"].dtype == torch.float32
    assert penalty.value(model).item() == penalty.add_gradient_(model).item() == 0.5 * 2 * 0.5**2
    assert model.weight.grad.item() == 0.5 * 2 * 2 * 0.5


@pytest.mark.parametrize("add", [_add_piecewise, _add_fused])
@pytest.mark.parametrize("omega_dtype", FLOATS)
@pytest.mark.parametrize("anchor_dtype", FLOATS)
@pytest.mark.parametrize("dtypes", [(t, t) for t in FLOATS] + [(torch.float32, torch.float64)])
def test_law_5_in_mixed_precision(dtypes, anchor_dtype, omega_dtype, add, monkeypatch):
    """On a CPU the pieces are used, on an accelerator the fused operations; both are to take any dtypes."""
    monkeypatch.setattr("mas.penalty._add_piecewise", add)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for layer, dtype in zip(model, dtypes, strict=True):
        layer.to(dtype)
    penalty = QuadraticPenalty(0.7)
    anchor = {name: t.to(anchor_dtype) for name, t in random_like(model).items()}
    omega = {name: t.to(omega_dtype) for name, t in random_like(model, positive=True).items()}
    penalty.consolidate(anchor, omega)
    value, found = penalty.value(model), {}
    for name, p in model.named_parameters():
        p.grad = torch.zeros_like(p)
        pull = p.detach().double() - anchor[name].double()
        found[name] = (2 * 0.7 * omega[name].double() * pull, omega[name].double() * pull.square())
    expected = 0.7 * sum(parts.sum() for _, parts in found.values())
    assert penalty.add_gradient_(model).item() == pytest.approx(expected.item(), rel=1e-6)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, p in model.named_parameters():
        assert p.grad.dtype == p.dtype
        assert torch.allclose(p.grad.double(), found[name][0], rtol=2 * torch.finfo(p.dtype).eps, atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_changed_its_dtype_between_tasks(rule):
    for first, second in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        model = make("mlp").model
        penalty, exact = QuadraticPenalty(0.7, rule, 0.3), QuadraticPenalty(0.7, rule, 0.3)
        for dtype in (first, second):
            anchor = {name: t.to(dtype) for name, t in random_like(model).items()}
            omega = {name: t.to(dtype) for name, t in random_like(model, positive=True).items()}
            omega["0.bias"] = torch.zeros_like(omega["0.bias"])  # not used
            penalty.consolidate(anchor, omega)
            exact.consolidate(*[{name: t.double() for name, t in tensors.items()} for tensors in (anchor, omega)])
        assert_same_state(penalty.state_dict(), exact.state_dict())


STATES = {
    "strength is inf": ({"strength": float("inf")}, ValueError),
    "strength is nan": ({"strength": float("nan")}, ValueError),
    "strength is -1.0; give a finite number": ({"strength": -1.0}, ValueError),
    "strength is '2'": ({"strength": "2"}, ValueError),
    "strength is None": ({"strength": None}, ValueError),
    "accumulate is 'mean'; known are 'sum'": ({"accumulate": "mean"}, ValueError),
    "accumulate is 3; known are 'sum'": ({"accumulate": 3}, ValueError),
    "factor is 1.5; give a number from 0 to 1": ({"factor": 1.5}, ValueError),
    "factor is nan": ({"factor": float("nan")}, ValueError),
    "constant is nan; a penalty's is a finite number": ({"constant": float("nan")}, ValueError),
    "constant is inf": ({"constant": float("inf")}, ValueError),
    "constant is -0.5": ({"constant": -0.5}, ValueError),
    "constant is 'no'": ({"constant": "no"}, ValueError),
    "importance is of type list; a penalty's is a dict": ({"importance": [torch.ones(2)]}, ValueError),
    "anchor is of type NoneType": ({"anchor": None}, ValueError),
    "importance holds 'w' of type float; a penalty's is a dict of": ({"importance": {"w": 1.0}}, ValueError),
    "importance holds 3 of type Tensor": ({"importance": {3: torch.ones(2)}}, ValueError),
    "'w' has an importance or an anchor only": ({"importance": {}}, ValueError),
    "'v' has an importance or an anchor only": ({"anchor": {"w": torch.ones(2), "v": torch.ones(2)}}, ValueError),
    r"'w' has shape \(2,\) and its anchor \(3,\)": ({"anchor": {"w": torch.ones(3)}}, ValueError),
    "'w' is complex": ({"anchor": {"w": torch.ones(2) * 1j}}, ValueError),
    "importance of 'w' has negative values": ({"importance": {"w": -torch.ones(2)}}, ValueError),
    "importance of 'w' has values that are not": ({"importance": {"w": torch.ones(2) / 0}}, FloatingPointError),
    "the anchor of 'w' has values that are not": ({"anchor": {"w": torch.ones(2) / 0}}, FloatingPointError),
}


@pytest.mark.parametrize("message", STATES)
def test_a_state_that_no_penalty_has_is_refused_and_changes_nothing(message):
    change, error = STATES[message]
    good = QuadraticPenalty(2.0, "decay", 0.25)
    good.consolidate({"w": torch.ones(2)}, {"w": torch.ones(2)})
    penalty, _ = after_tasks(make("mlp").model, "quadratics")
    before = copy.deepcopy(penalty.state_dict())
    with pytest.raises(error, match=message) as raised:
        penalty.load_state_dict(good.state_dict() | change)
    assert "\n" not in str(raised.value)
    assert_same_state(penalty.state_dict(), before)
    penalty.load_state_dict(good.state_dict())
    assert_same_state(penalty.state_dict(), good.state_dict())


@pytest.mark.parametrize("omega_dtype", [torch.int64, torch.float64])
def test_loading_takes_copies_and_any_dtypes(omega_dtype):
    state = QuadraticPenalty(0.5).state_dict()
    state["importance"] = {"weight": torch.tensor([[2]], dtype=omega_dtype)}
    state["anchor"] = {"weight": torch.tensor([[0.25]], dtype=torch.float64, requires_grad=True)}
    penalty = QuadraticPenalty()
    penalty.load_state_dict(state)
    for key in ("importance", "anchor"):
        state[key]["weight"].detach().zero_()
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.25)
    assert penalty.add_gradient_(model).item() == penalty.value(model).item() == 1.0
    assert not penalty.anchor["weight"].requires_grad


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
