"""Many columns of an objective in one backward pass give what one column at a time gives."""

import pytest
import torch
from torch import Tensor, nn

from mas import fisher_importance
from mas.columns import can_fold
from mas.gradients import SamplePass, mean_moments
from mas.summing import MomentAccumulator

MEASURES = {
    "exact Fisher": lambda model, x, **more: fisher_importance(model, [x], labels="exact", **more),
    "|g| of each output": lambda model, x, **more: mean_moments(model, [x], lambda output, batch: output, **more),
}


class Raw(nn.Module):
    """A product written out, and a norm on features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8))
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x @ self.weight).relu())


class Tied(nn.Module):
    """One layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 7, bias=False))


FOLDING = {"mlp": mlp, "raw": Raw}
OTHERS = {"tied": Tied, "positions": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 4), nn.Flatten())}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    return (FOLDING | OTHERS)[name]().double().eval()


def one_at_a_time(monkeypatch, measure, model, x):
    with monkeypatch.context() as patch:
        patch.setattr("mas.gradients.can_fold", lambda accumulator, calls: False)
        return measure(model, x)


@pytest.mark.parametrize("max_bytes", [None, 1, 2000])
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("name", [*FOLDING, *OTHERS])
def test_it_equals_one_column_at_a_time(name, measure, max_bytes, x, monkeypatch):
    model = build(name)
    expected = one_at_a_time(monkeypatch, measure, model, x)
    found = measure(model, x, max_bytes=max_bytes)
    for parameter, value in expected.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FOLDING)
def test_without_a_batched_backward_it_takes_one_pass_a_column(name, x, monkeypatch):
    model, measure, grad = build(name), MEASURES["exact Fisher"], torch.autograd.grad
    expected = one_at_a_time(monkeypatch, measure, model, x)
    calls = []

    def unbatched(*args, is_grads_batched=False, **kwargs):
        calls.append(is_grads_batched)
        if is_grads_batched:
            raise RuntimeError("no batching rule")
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", unbatched)
    found = measure(model, x)
    assert calls[0] is True
    assert calls[1:] == [False] * (7 if name == "mlp" else 5)
    for parameter, value in expected.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [*FOLDING, *OTHERS])
def test_columns_fold_where_each_gradient_is_a_product(name, x):
    model = build(name)
    engine = SamplePass(model, lambda output, batch: output, moment="square")
    _, recorder = engine._record(x)
    assert can_fold(engine.accumulator, recorder.calls) is (name in FOLDING)


def test_derived_weights_do_not_fold(x):
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)).double().eval()
    engine = SamplePass(model, lambda output, batch: output, moment="square")
    _, recorder = engine._record(x)
    assert not can_fold(engine.accumulator, recorder.calls)
    assert not can_fold(MomentAccumulator({}, "square", None), [])
