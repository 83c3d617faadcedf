"""Laws 1 to 3 on the engine: exact for every layer, whatever the batching, leaving no trace."""

import random

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

import mas.gradients
from mas import mean_moments, per_sample_moments
from mas.batches import batch_size, select_samples
from mas.recording import close
from mas.summing import _first_calls, backward
from tests import models
from tests.cases import CASES, SLOW, By, N, flat, make, quadratic
from tests.conftest import assert_same
from tests.oracles.moments import moments_by_loop, one_sample


def oracle(case, objective=quadratic, moment="abs"):
    case.model.eval()
    return moments_by_loop(case.model, case.batch, objective, moment, case.forward)


@pytest.mark.parametrize("moment", ["abs", "square"])
@pytest.mark.parametrize("name", CASES)
def test_law_1_equals_a_loop_over_single_samples(name, moment):
    case = make(name)
    found = per_sample_moments(case.model, case.batch, quadratic, moment=moment, forward=case.forward)
    assert_same(found, oracle(case, moment=moment))
    assert any(value.abs().max() > 1e-3 for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", [models.resnet18, torchvision.models.mobilenet_v3_small, torchvision.models.convnext_tiny]
)
def test_law_1_for_networks_of_full_size(build):
    torch.manual_seed(0)
    model = build().double()
    batch = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    found = per_sample_moments(model, batch, quadratic)
    model.eval()
    assert_same(found, moments_by_loop(model, batch, quadratic, "abs"))


@pytest.mark.parametrize("name", CASES)
def test_law_1_with_several_objectives_per_sample(name):
    def both(output, batch):
        return torch.stack([quadratic(output, batch), output.flatten(1)[:, 0]], 1)

    case = make(name)
    assert_same(
        per_sample_moments(case.model, case.batch, both, moment="square", forward=case.forward),
        oracle(case, both, "square"),
    )


@pytest.mark.parametrize("name", CASES)
def test_law_1_with_frozen_parameters(name):
    case = make(name)
    frozen = [p for i, p in enumerate(case.model.parameters()) if i % 2]
    for p in frozen:
        p.requires_grad_(False)
    found = per_sample_moments(case.model, case.batch, quadratic, moment="abs", forward=case.forward)
    assert_same(found, oracle(case))
    assert len(found) == sum(p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_law_2_one_batch_or_many_one_order_or_another(name):
    case = make(name)
    whole = mean_moments(case.model, [case.batch], quadratic, moment="abs", forward=case.forward)
    ragged = [select_samples(case.batch, slice(a, b), N) for a, b in ((0, 1), (1, 5), (5, 6))]
    backwards = [one_sample(case.batch, n) for n in reversed(range(N))]
    for batches in (ragged, backwards):
        assert_same(mean_moments(case.model, batches, quadratic, moment="abs", forward=case.forward), whole)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("moment", ["abs", "square"])
def test_chunks_of_per_sample_gradients_do_not_show(moment, name):
    case = make(name)
    whole = per_sample_moments(case.model, case.batch, quadratic, moment=moment, forward=case.forward)
    for limit in (1, 500):
        assert_same(
            per_sample_moments(case.model, case.batch, quadratic, moment=moment, forward=case.forward, max_bytes=limit),
            whole,
        )


def snapshot(model):
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def assert_unchanged(before, after):
    for key, old in before.items():
        new = after[key]
        if isinstance(old, list) and old and isinstance(old[0], torch.Tensor):
            assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True)), key
        elif isinstance(old, torch.Tensor | np.ndarray):
            assert (old == new).all(), key
        else:
            assert old == new, key


def drawing_loader(batch):
    """Load single samples, with draws from every global random stream on the way."""
    samples = [one_sample(batch, n) for n in range(N)]
    for sample in torch.utils.data.DataLoader(samples, batch_size=None, shuffle=True):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: S311 - no secret
        yield sample


@pytest.mark.parametrize("name", CASES)
def test_law_3_measuring_changes_nothing(name):
    case = make(name)
    list(case.model.modules())[-1].eval()  # modes that differ among modules
    for p in case.model.parameters():
        p.grad = torch.ones_like(p)
    before = snapshot(case.model)
    mean_moments(case.model, drawing_loader(case.batch), quadratic, moment="abs", forward=case.forward)
    per_sample_moments(case.model, case.batch, quadratic, moment="abs", forward=case.forward)
    assert_unchanged(before, snapshot(case.model))


def test_law_3_also_when_the_pass_fails():
    case = make("batch_norm2d")
    before = snapshot(case.model)
    with pytest.raises(ValueError, match="shape"):
        per_sample_moments(case.model, case.batch, lambda output, batch: output.mean())
    assert_unchanged(before, snapshot(case.model))


def test_law_3_buffers_that_change_in_eval_mode_are_put_back():
    class Counts(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("kept", torch.zeros(1))
            self.register_buffer("hidden", torch.zeros(1))
            self.register_buffer("later", None)

        def forward(self, x):
            self.seen += 1
            self.kept = self.kept + 1
            self.hidden.data.add_(1)
            self.later = torch.ones(1)
            return super().forward(x)

    model = Counts()
    kept = model.kept
    per_sample_moments(model, torch.randn(3, 4), quadratic)
    assert model.seen == model.hidden == 0
    assert model.kept is kept
    assert kept == 0
    assert model.later is None


def test_law_3_a_backward_pass_that_waits_is_not_spoilt():
    case = make("batch_norm2d")
    case.model.eval()
    waiting = case.model(case.batch).square().sum()
    per_sample_moments(case.model, case.batch, quadratic)
    waiting.backward()


def test_a_batch_as_large_as_the_sequence_is_long_is_not_confused():
    case = make("sequence_first")
    assert case.batch.shape[0] == case.batch.shape[1]
    assert_same(per_sample_moments(case.model, case.batch, quadratic), oracle(case))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", sorted(CASES.keys() - SLOW))
def test_closed_forms_are_what_is_used_where_they_exist(name, training, monkeypatch):
    """The fallback is exact as well, so only this test fails if everything uses it."""
    monkeypatch.setattr(mas.gradients.SamplePass, "_add_by_fallback", lambda *_: pytest.fail("used the fallback"))
    case = make(name)
    case.model.train(training)
    per_sample_moments(case.model, case.batch, quadratic, moment="abs", forward=case.forward)


def test_half_precision_accumulates_in_float32():
    case = make("mlp")
    expected = {name: value.float() for name, value in oracle(case).items()}
    found = per_sample_moments(case.model.bfloat16(), case.batch.bfloat16(), quadratic)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert_same(found, expected, tolerance=0.05)


def test_runs_under_no_grad_and_inference_mode():
    case = make("mlp")
    expected = oracle(case)
    with torch.no_grad():
        assert_same(per_sample_moments(case.model, case.batch, quadratic), expected)
    with torch.inference_mode():
        assert_same(per_sample_moments(case.model, case.batch, quadratic), expected)


def test_max_samples_takes_the_first_and_cuts_the_last_batch():
    case = make("mlp")
    batches = [case.batch[:4], case.batch[4:]]
    found = mean_moments(case.model, batches, quadratic, max_samples=5)
    assert_same(found, mean_moments(case.model, [case.batch[:5]], quadratic))
    with pytest.raises(ValueError, match="max_samples is 0"):
        mean_moments(case.model, batches, quadratic, max_samples=0)


def test_dict_batches_with_a_forward():
    case = make("mlp")
    batch = {"pixels": case.batch, "id": list(range(N))}
    found = per_sample_moments(case.model, batch, quadratic, forward=lambda model, b: model(b["pixels"]))
    assert_same(found, oracle(case))
    with pytest.raises(ValueError, match="give forward="):
        per_sample_moments(case.model, batch, quadratic)


def test_batch_size_needs_a_tensor():
    assert batch_size({"a": [torch.zeros(3, 2)]}) == 3
    with pytest.raises(ValueError, match="no tensor"):
        batch_size(["a"])


# However the model is wrapped, and however it runs.

WRAPPED = {
    "compile": lambda model: torch.compile(model, backend="aot_eager"),
    "data_parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="aot_eager")),  # type: ignore[type-var]
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("name", ["mlp", "residual", "attention"])
def test_a_wrapped_model_gives_the_bare_models_numbers_and_names(name, wrap):
    case = make(name)
    expected = oracle(case)
    wrapped = WRAPPED[wrap](case.model)
    if wrap == "compile":
        wrapped(case.batch)  # compiled before it is measured
    assert_same(per_sample_moments(wrapped, case.batch, quadratic), expected)


def test_a_compiled_part_is_seen_through():
    case = make("mlp")
    expected = oracle(case)
    case.model[2] = torch.compile(case.model[2], backend="aot_eager")
    case.model(case.batch)
    assert_same(per_sample_moments(case.model, case.batch, quadratic), expected)


@pytest.mark.parametrize("name", ["mlp", "conv2d_all", "residual", "attention", "vit", "gpt", "lstm"])
def test_autocast_accumulates_in_float32(name):
    case = make(name)
    expected = {key: value.float() for key, value in oracle(case).items()}
    case.model.float()
    batch = case.batch.float() if case.batch.is_floating_point() else case.batch
    with torch.autocast("cpu", torch.bfloat16):
        found = per_sample_moments(case.model, batch, quadratic)
    assert all(value.dtype == torch.float32 for value in found.values())
    for key, value in expected.items():
        assert (found[key] - value).abs().max() <= 0.1 * max(expected[k].abs().max() for k in expected), key


def test_packed_sequences_use_the_fallback():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.out(self.lstm(packed)[1][0][-1])

    model, batch = Packed().double(), (flat(4, 3), torch.tensor([4, 2, 3, 1, 4, 2]))

    def run(model, batch):
        return model(*batch)

    expected = moments_by_loop(model, batch, quadratic, "abs", run)
    assert_same(per_sample_moments(model, batch, quadratic, moment="abs", forward=run), expected)


def test_a_checkpointed_recurrent_layer_is_exact():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.scale = nn.GRU(3, 4, batch_first=True), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return checkpoint(lambda h: (self.gru(h)[0] * self.scale.exp()).sum(1), x, use_reentrant=False)

    model, batch = Again().double(), flat(5, 3)
    assert_same(per_sample_moments(model, batch, quadratic), moments_by_loop(model, batch, quadratic, "abs"))


@pytest.mark.parametrize("moment", ["abs", "square"])
def test_reduction_batch_is_the_moment_of_the_batch_mean(moment):
    case = make("mlp")
    batches = [case.batch[:4], case.batch[4:]]
    found = mean_moments(case.model, batches, quadratic, moment=moment, reduction="batch")
    expected = {name: torch.zeros_like(p) for name, p in case.model.named_parameters()}
    for batch in batches:
        grads = torch.autograd.grad(quadratic(case.model(batch), batch).mean(), list(case.model.parameters()))
        for name, g in zip(expected, grads, strict=True):
            expected[name] += (g.abs() if moment == "abs" else g**2) / 2
    assert_same(found, expected)


# What cannot be done exactly is refused, with the reason.


def test_batch_statistics_are_refused_with_the_modules_name():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"module '1' \(BatchNorm1d\): batch statistics mix"):
        per_sample_moments(model, torch.randn(6, 4), quadratic)


def test_batch_statistics_without_parameters_are_refused_too():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False, track_running_stats=False), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"module '1' \(BatchNorm1d\): batch statistics mix"):
        per_sample_moments(model, torch.randn(6, 4), quadratic)


def test_samples_that_influence_each_other_are_refused():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    with pytest.raises(ValueError, match="depends on the other samples"):
        per_sample_moments(Centred(4, 2), torch.randn(6, 4), quadratic)


def test_chance_in_eval_mode_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    with pytest.raises(ValueError, match="or on chance"):
        per_sample_moments(Noisy(4, 2), torch.randn(6, 4), quadratic)


def test_embedding_with_max_norm_is_refused_and_not_rewritten():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Flatten())
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"module '0' \(Embedding\): max_norm"):
        per_sample_moments(model, torch.randint(5, (4, 2)), quadratic)
    assert torch.equal(model[0].weight, before)


def test_a_reentrant_checkpoint_is_refused_with_the_remedy():
    class Reentrant(nn.Linear):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=True)

    with pytest.raises(ValueError, match="use_reentrant=False"):
        per_sample_moments(Reentrant(4, 2), torch.randn(6, 4, requires_grad=True), quadratic)


def test_a_parameter_without_any_road_is_named_with_the_remedy():
    class OnlyBatches(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ParameterDict({"w": torch.ones(4)})

        def forward(self, x):
            if len(x) < 2 and torch.is_grad_enabled() and not getattr(self, "probed", True):
                raise RuntimeError("needs two")
            self.probed = False
            return x - self.inner["w"]

    with pytest.raises(RuntimeError, match=r"module inner: needs two; freeze its parameters"):
        per_sample_moments(OnlyBatches().train(), torch.randn(1, 4), quadratic)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda o, b: o.square().mean(), r"shape \(\) for a batch of 6"),
        (lambda o, b: o.square().sum(1)[:3], r"shape \(3,\) for a batch of 6"),
        (lambda o, b: o[:, :, None], r"shape \(6, 3, 1\) for a batch of 6"),
        (lambda o, b: 3.0, "objective gave float"),
        (lambda o, b: o.detach().sum(1), "does not depend on any parameter"),
    ],
)
def test_a_wrong_objective_is_one_clear_error(objective, message):
    case = make("mlp")
    with pytest.raises(ValueError, match=message):
        per_sample_moments(case.model, case.batch, objective)


def test_model_and_batch_on_different_devices_is_one_clear_error():
    with pytest.raises(ValueError, match="the model is on meta and the batch on cpu; move the batches"):
        per_sample_moments(nn.Linear(4, 2).to("meta"), torch.randn(3, 4), quadratic)


def test_wrong_settings_are_one_clear_error():
    case = make("mlp")
    with pytest.raises(ValueError, match="max_bytes is 0"):
        per_sample_moments(case.model, case.batch, quadratic, max_bytes=0)
    with pytest.raises(ValueError, match="reduction is 'mean'; known are 'sample', 'batch'"):
        mean_moments(case.model, [case.batch], quadratic, reduction="mean")


@pytest.mark.parametrize("depends_on", ["first", "last", "before"])
def test_dependence_on_any_sample_is_refused(depends_on):
    class Leaking(nn.Linear):
        def forward(self, x):
            if depends_on == "before":
                return super().forward(x.cumsum(0))
            return super().forward(x + x[0 if depends_on == "first" else -1])

    with pytest.raises(ValueError, match="depends on the other samples"):
        per_sample_moments(Leaking(4, 2), torch.randn(6, 4), quadratic)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "mix",
    [
        lambda h: h - 0.5 * h.mean(0),
        lambda h: h + 0.5 * h.flip(0),
        lambda h: h + 0.5 * h.roll(1, 0),
        lambda h: h + 0.5 * h.roll(-1, 0),
        lambda h: (h + 0.5 * h.mean(0)).unsqueeze(1).repeat(1, 7, 1).movedim(0, 1),  # samples on the second axis
    ],
)
@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 9])
def test_any_mixing_of_samples_is_refused(size, mix, dtype):
    torch.manual_seed(0)

    class Mixes(nn.Linear):
        def forward(self, x):
            return mix(super().forward(x))

    with pytest.raises(ValueError, match="depends on the other samples"):
        per_sample_moments(Mixes(4, 3).to(dtype), torch.randn(size, 4, dtype=dtype), lambda o, b: b.sum(1) * o.sum())


def test_an_objective_that_mixes_samples_is_refused():
    with pytest.raises(ValueError, match="objective of one sample depends on the other samples"):
        per_sample_moments(nn.Linear(4, 3), torch.randn(6, 4), lambda o, b: (o - o.mean(0)).square().sum(1))


def test_an_objective_may_hold_tensors_of_the_batchs_size():
    case, y = make("mlp"), torch.tensor([0, 1, 2, 0, 1, 2])
    found = per_sample_moments(case.model, case.batch, lambda o, b: nn.functional.cross_entropy(o, y, reduction="none"))
    pairs = (case.batch, y)
    assert_same(
        found, moments_by_loop(case.model, pairs, lambda o, b: nn.functional.cross_entropy(o, b[1])[None], "abs")
    )


def test_a_convolution_with_same_padding_takes_its_input_by_name():
    def convolve(m, x):
        return nn.functional.conv2d(input=x, weight=m.weight, padding="same")

    model, x = By(convolve, weight=nn.Parameter(torch.randn(2, 1, 2, 3))), torch.randn(3, 1, 4, 4)
    found = per_sample_moments(model, x, quadratic)
    assert_same(found, moments_by_loop(model, x, quadratic, "abs"), 1e-5)


def test_columns_of_rounding_noise_are_no_mixing():
    """What cancels, such as a constant channel in group normalisation, differs with the batch size."""
    torch.manual_seed(0)
    rows, index = torch.randn(6, 8), [5, 0, 3]
    rows[:, 4:6], rows[:, 6:] = 0.0, 1e-8 * torch.randn(6, 2)
    fewer = rows[index]
    fewer[:, 6:] = 1e-8 * torch.randn(3, 2)
    assert close(rows, fewer, index)
    fewer[1, 0] += 0.1
    assert not close(rows, fewer, index)


def test_rows_are_found_anew_in_each_batch_where_the_model_picks_them():
    """The same number of picked rows, in other places: what one batch taught is wrong for the next."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.expert = nn.Linear(1, 1, bias=False)

        def forward(self, x):  # (N, T)
            tokens = x.reshape(-1, 1)
            rows = (tokens[:, 0].abs() > 0.5).nonzero()[:, 0]
            return torch.zeros_like(tokens).index_add(0, rows, self.expert(tokens[rows])).reshape(x.shape).sum(1)

    model = Routed()
    nn.init.ones_(model.expert.weight)
    batches = [torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, -3.0], [0.0, 0.0]])]
    found = mean_moments(model, batches, lambda o, b: o.square())
    right = sum(2 * row.sum() ** 2 for x in batches for row in x) / 6  # ∂(w s)²/∂w = 2 w s²
    assert found["expert.weight"].item() == pytest.approx(right.item(), rel=1e-6)


def test_complex_parameters_are_refused():
    model = By(lambda m, x: (x * m.gain).abs(), gain=nn.Parameter(torch.rand(4, dtype=torch.complex64)))
    with pytest.raises(ValueError, match="parameter 'gain' is complex"):
        per_sample_moments(model, torch.randn(3, 4), quadratic)


def test_an_empty_batch_adds_nothing():
    case = make("mlp")
    batches = [case.batch, case.batch[:0]]
    assert_same(mean_moments(case.model, batches, quadratic), mean_moments(case.model, [case.batch], quadratic))
    for reduction in ("sample", "batch"):
        with pytest.raises(ValueError, match="gave no sample"):
            mean_moments(case.model, [case.batch[:0]], quadratic, reduction=reduction)


@pytest.mark.parametrize("name", ["mlp", "residual", "vit"])
def test_a_backward_pass_holds_one_gradient_at_a_time_and_lets_go(name, monkeypatch):
    """Only what ends the pass is asked of autograd; inputs are dropped once their layer is done."""
    noted = []

    def seen(objective, calls, collector, **options):
        noted.append((list(calls), _first_calls(calls)))
        backward(objective, calls, collector, **options)

    monkeypatch.setattr("mas.gradients.backward", seen)
    case = make(name)
    per_sample_moments(case.model, case.batch, quadratic)
    ((calls, first),) = noted
    assert len(calls) > 3 or name == "mlp"
    assert len(first) <= 2  # a residual block has two ways in
    assert all(call.arguments == {} for call in calls)


def test_sparse_gradients_and_inference_tensors_are_as_others():
    case, other = make("embedding"), make("embedding")
    for module in other.model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True
    with torch.inference_mode():
        batch = other.batch.clone()
    found = per_sample_moments(other.model, batch, quadratic)
    assert_same(found, per_sample_moments(case.model, case.batch, quadratic))


def test_a_sample_that_uses_no_parameter_has_none_of_the_moment():
    class Some(nn.Linear):
        def forward(self, x):
            return torch.stack([super(Some, self).forward(row) if row.sum() > 0 else row[:2] for row in x])

    torch.manual_seed(0)
    model, x = Some(4, 2), torch.randn(6, 4)
    used = x[x.sum(1) > 0]
    assert 0 < len(used) < 6
    assert_same(per_sample_moments(model, x, quadratic), per_sample_moments(model, used, quadratic))


def test_nothing_to_measure_is_one_clear_error():
    case = make("mlp")
    with pytest.raises(ValueError, match="gave no sample"):
        mean_moments(case.model, [], quadratic)
    with pytest.raises(ValueError, match=r"batches is a single tensor, .* give a list: \[x\]"):
        mean_moments(case.model, case.batch, quadratic)
    with pytest.raises(ValueError, match="moment is 'cube'"):
        per_sample_moments(case.model, case.batch, quadratic, moment="cube")
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        per_sample_moments(case.model.requires_grad_(False), case.batch, quadratic)


def test_values_that_are_not_finite_are_an_error_that_names_the_sample():
    case = make("mlp")
    case.batch[2, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"for sample 2 of the batch; check its input; .*lower learning rate"):
        per_sample_moments(case.model, case.batch, quadratic)


@pytest.mark.parametrize(
    ("scale", "moment"),
    [(1e30, "square"), (float("inf"), "abs"), (float("nan"), "abs")],
)
def test_moments_that_are_not_finite_are_an_error_that_names_the_parameter(scale, moment):
    """The objective is finite, its gradient is not."""

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * scale

    torch.manual_seed(0)
    model = By(lambda m, x: m.after(Scaled.apply(m.before(x))), before=nn.Linear(4, 3), after=nn.Linear(3, 2))
    with pytest.raises(
        FloatingPointError, match=r"importance of 'before\.(weight|bias)' is not finite: .*lower learning"
    ):
        per_sample_moments(model, torch.randn(6, 4), quadratic, moment=moment)
    model.before.requires_grad_(False)
    assert all(
        t.isfinite().all() for t in per_sample_moments(model, torch.randn(6, 4), quadratic, moment=moment).values()
    )


def test_a_parameter_without_elements_has_a_moment_without_elements():
    model = By(lambda m, x: m.layer(x) + m.none.sum(), layer=nn.Linear(4, 3), none=nn.Parameter(torch.empty(0)))
    x = torch.randn(6, 4)
    found = per_sample_moments(model, x, quadratic)
    assert found.pop("none").shape == (0,)
    assert_same(found, {f"layer.{n}": t for n, t in per_sample_moments(model.layer, x, quadratic).items()}, 1e-6)
    model.layer.requires_grad_(False)
    assert per_sample_moments(model, x, quadratic)["none"].shape == (0,)


def test_an_input_overwritten_in_place_is_an_error_not_a_wrong_number():
    class Overwrites(nn.Linear):
        def forward(self, x):
            x = x * 1
            y = super().forward(x)
            x.zero_()
            return y + x

    with pytest.raises(RuntimeError, match="overwritten in place"):
        per_sample_moments(Overwrites(4, 4), flat(4).float(), quadratic)
