"""Other libraries' numbers from ours, as docs/importance.md says: each reference is written out here from its formula.

The references follow the files that the page names; no code of theirs is copied. Avalanche, which
is installed, is compared with itself in ``tests/test_strategies.py``.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from mas import PathIntegral, QuadraticPenalty, fisher_importance, mas_importance, mean_moments
from mas.experiments.cell import CellTraining
from mas.experiments.read_config import load_config
from mas.strategies import MAS, EWCPlugin, OnlineEWCPlugin
from tests.conftest import assert_same

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/importance.md").read_text(encoding="utf-8")
HEAD = ("2.weight", "2.bias")


def settings_of(row, **values):
    """Return the settings that the last column of a row of the page gives, with values for its symbols."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row} |")]
    *_, settings = re.findall(r"`(\w+: [^`]*)`", line)
    pairs = dict(pair.split(": ") for pair in settings.split(", "))
    return {name: values.get(value, value) for name, value in pairs.items()}


def network():
    """Return a small classifier in float64."""
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def samples(number, seed):
    """Return inputs and labels."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 5, generator=draw, dtype=torch.float64)
    return x, torch.randint(4, (number,), generator=draw)


def split(x, y, size):
    """Return batches of ``size``; the last may be smaller."""
    return list(zip(x.split(size), y.split(size), strict=True))


def moved(model):
    """Return the model elsewhere: a penalty is 0 at its anchor."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    return other


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradient(model, number):
    """Return the gradient of a number by parameter name."""
    found = torch.autograd.grad(number, list(model.parameters()), retain_graph=True)
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def weighted_square(model, omega, anchor):
    """Return Σ Ω (θ − θ*)²."""
    return sum((omega[name] * (p - anchor[name]) ** 2).sum() for name, p in model.named_parameters() if name in omega)


# FACIL, src/approach/mas.py


def facil_importance(model, batches):
    """Return the mean over batches of |∂ mean ‖F‖₂ / ∂θ|, of the backbone alone."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name not in HEAD}
    for x, _ in batches:
        norm = model(x).pow(2).sum(1).sqrt().mean()
        for name, g in gradient(model, norm).items():
            if name in total:
                total[name] += g.abs() / len(batches)
    return total


def facil(model, tasks, lam, alpha, lr):
    """Train as FACIL does; return importance and anchor after each task."""
    omega = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name not in HEAD}
    anchor, after = values(model), []
    for batches in tasks:
        for x, y in batches:
            penalty = lam / 2 * weighted_square(model, omega, anchor)
            loss = nn.functional.cross_entropy(model(x), y) + penalty
            step = gradient(model, loss)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.sub_(lr * step[name])
        anchor, new = values(model), facil_importance(model, batches)
        omega = {name: alpha * omega[name] + (1 - alpha) * new[name] for name in omega}
        after.append((omega, anchor))
    return after


def facil_stream():
    x, _ = samples(24, seed=0)
    data = TensorDataset(x, torch.arange(24) % 4)
    return nc_benchmark(data, data, 2, task_labels=False, shuffle=False).train_stream


def batches_of(experience, size):
    x, y = (torch.stack([torch.as_tensor(item[i]) for item in experience.dataset]) for i in (0, 1))
    return split(x, y, size)


def test_facils_mas_is_a_decay_and_not_ema():
    """Its average starts from zeros, so that (1 − α) stands before the first importance too."""
    alpha, lam = 0.3, 2.0
    model, stream = network(), facil_stream()
    reference, anywhere = copy.deepcopy(model), moved(model)
    expected = facil(reference, [batches_of(e, 4) for e in stream], lam, alpha, lr=0.1)
    strategy = MAS(
        **settings_of("FACIL's MAS", **{"α": alpha, "(1−α) λ/2": (1 - alpha) * lam / 2}),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        evaluator=EvaluationPlugin(),
    )
    (penalty,) = [plugin.penalty for plugin in strategy.plugins if hasattr(plugin, "penalty")]
    for experience, (omega, anchor) in zip(stream, expected, strict=True):
        strategy.train(experience, shuffle=False)
        assert all(value.max() > 0 for value in omega.values())
        assert_same({name: (1 - alpha) * value for name, value in penalty.importance.items()}, omega)
        theirs = lam / 2 * weighted_square(anywhere, omega, anchor)
        assert penalty.value(anywhere).item() == pytest.approx(theirs.item(), rel=1e-10)
    assert_same(values(model), values(reference))  # trained with the penalty from the second task on


def test_zeros_make_ema_start_as_facils_average_does():
    alpha, model, anywhere = 0.3, network(), moved(network())
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name not in HEAD}
    penalty = QuadraticPenalty(2.0 / 2, "ema", alpha)
    penalty.consolidate(model, expected)
    for seed in (0, 1):
        new = facil_importance(model, split(*samples(12, seed), 4))
        penalty.consolidate(model, new)
        expected = {name: alpha * expected[name] + (1 - alpha) * new[name] for name in new}
        assert_same(penalty.importance, expected)
        theirs = 2.0 / 2 * weighted_square(anywhere, expected, values(model))
        assert penalty.value(anywhere).item() == pytest.approx(theirs.item(), rel=1e-10)


def test_ema_with_facils_own_strength_is_four_times_its_penalty():
    """With α = ½: twice as it starts from the first importance, and twice as it has no ½."""
    model, anywhere = network(), moved(network())
    new = facil_importance(model, split(*samples(12, seed=0), 4))
    penalty = QuadraticPenalty(2.0, "ema", 0.5)
    penalty.consolidate(model, new)
    theirs = 2.0 / 2 * weighted_square(anywhere, {name: 0.5 * omega for name, omega in new.items()}, values(model))
    assert penalty.value(anywhere).item() == pytest.approx(4 * theirs.item(), rel=1e-10)


# The MAS authors' code, MAS_utils/MAS_based_Training.py


AUTHORS = {  # their norm: (what of the output is differentiated, our objective)
    "L2": (lambda output: [output.pow(2).sum()], lambda output, batch: output.pow(2).sum(1)),
    "L1": (lambda output: [output.abs().sum()], lambda output, batch: output.abs().sum(1)),
    "vector": (lambda output: list(output.sum(0)), lambda output, batch: output),
}


def authors_importance(model, batches, parts):
    """Return their running mean: weight i·b for what was, b the size of the batch that comes."""
    omega = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i, (x, _) in enumerate(batches):
        own = {name: torch.zeros_like(value) for name, value in omega.items()}
        for part in parts(model(x)):
            for name, g in gradient(model, part).items():
                own[name] += g.abs()
        size = len(x)
        omega = {name: (old * i * size + own[name]) / ((i + 1) * size) for name, old in omega.items()}
    return omega


@pytest.mark.parametrize("norm", AUTHORS)
@pytest.mark.parametrize("size", [1, 4, 5])  # of 12 samples: the last batch is ragged at 5
def test_the_mas_authors_norms(norm, size):
    model, batches = network(), split(*samples(12, seed=0), size)
    parts, objective = AUTHORS[norm]
    expected = authors_importance(model, batches, parts)
    assert_same(mean_moments(model, batches, objective, moment="abs", reduction="batch"), expected)
    if size == 1:  # what they call online: the moment per sample
        assert_same(mean_moments(model, split(*samples(12, seed=0), 7), objective, moment="abs"), expected)


@pytest.mark.parametrize("size", [1, 5])
def test_the_mas_authors_sum_over_tasks(size):
    model, anywhere, lam = network(), moved(network()), 3.0
    omega = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    penalty = QuadraticPenalty(lam)
    for seed in (0, 1):
        batches = split(*samples(12, seed), size)
        new = authors_importance(model, batches, AUTHORS["L2"][0])
        omega = {name: omega[name] + new[name] for name in omega}
        penalty.consolidate(model, mas_importance(model, batches, reduction="batch"))
        theirs = lam * weighted_square(anywhere, omega, values(model))  # its gradient is 2 λ Ω (θ − θ*)
        assert penalty.value(anywhere).item() == pytest.approx(theirs.item(), rel=1e-10)


# Van de Ven's continual-learning, models/cl/continual_learner.py


def van_de_ven_fisher(model, x, y, labels):
    """Return the sum over samples, divided by the *index* of the last one: N − 1."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(x)):
        log_p = model(x[n : n + 1]).log_softmax(1)[0]
        one = nn.functional.one_hot
        weights = {"exact": log_p.detach().exp(), "empirical": one(y[n], 4), "predicted": one(log_p.argmax(), 4)}
        for c in range(4):
            for name, g in gradient(model, log_p[c]).items():
                total[name] += weights[labels][c] * g**2
    return {name: value / (len(x) - 1) for name, value in total.items()}


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted"])
def test_van_de_vens_fisher_is_divided_by_one_less(labels):
    model, (x, y) = network(), samples(6, seed=0)
    found = fisher_importance(model, [(x, y)], labels=labels)
    assert_same({name: value * 6 / 5 for name, value in found.items()}, van_de_ven_fisher(model, x, y, labels))


@pytest.mark.parametrize("online", [False, True])
def test_van_de_vens_penalties(online):
    """Online, old information decays when it is joined and once more in the penalty."""
    lam, gamma, number = 3.0, 0.7, 6
    model, anywhere, terms = network(), moved(network()), []
    whole = lam * number / (number - 1)
    symbols = {"γ": gamma, "λ N/(N−1)": whole, "γ λ N/(N−1)": gamma * whole}
    if online:
        penalty = OnlineEWCPlugin(**settings_of("van de Ven's online EWC", **symbols)).penalty
    else:
        penalty = EWCPlugin(**settings_of("van de Ven's EWC, all data (`fisher_n` not set)", **symbols)).penalty
    for seed in (0, 1):
        model = moved(model)  # as training would
        x, y = samples(number, seed)
        new = van_de_ven_fisher(model, x, y, "exact")
        if online:
            old = terms[0][0] if terms else {name: torch.zeros_like(value) for name, value in new.items()}
            terms = [({name: new[name] + gamma * old[name] for name in new}, values(model))]
        else:
            terms.append((new, values(model)))
        penalty.consolidate(model, fisher_importance(model, [(x, y)]))
        theirs = lam / 2 * sum(weighted_square(anywhere, *term) for term in terms) * (gamma if online else 1)
        assert penalty.value(anywhere).item() == pytest.approx(theirs.item(), rel=1e-10)


def test_si_without_the_clamp():
    """Zenke's equation 5, van de Ven's code and FACIL's keep what is below 0; here it is 0."""
    model, (x, y) = network(), samples(12, seed=0)
    start, path, damping = values(model), PathIntegral(model, damping=0.1), 0.1
    omega = {name: torch.zeros_like(value) for name, value in start.items()}
    for i in range(12):
        g = gradient(model, nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]))
        before = values(model)
        for name, p in model.named_parameters():
            p.grad = g[name]
        path.before_step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.sub_(0.1 * (g[name] + 0.5 * torch.randn_like(p)))  # noise: steps that raise the loss too
                omega[name] -= g[name] * (p - before[name])
        path.after_step()
    plain = {name: omega[name] / ((p.detach() - start[name]) ** 2 + damping) for name, p in model.named_parameters()}
    assert any((value < 0).any() for value in plain.values())
    assert_same(path.importance(), {name: value.clamp(min=0) for name, value in plain.items()})


# Mammoth, models/ewc_on.py


def mammoth_fisher(model, batches, size):
    """Return Σ p(y|x) g_y² over the samples, by the number of batches times their nominal size."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in batches:
        for n in range(len(x)):
            log_p = model(x[n : n + 1]).log_softmax(1)[0, y[n]]
            for name, g in gradient(model, log_p).items():
                total[name] += log_p.detach().exp() * g**2
    return {name: value / (len(batches) * size) for name, value in total.items()}


def the_pages_lines():
    """Return what the three lines of the page define."""
    (lines,) = re.findall(r"```py\n(def mammoth.*?)```", PAGE, re.DOTALL)
    assert len(lines.strip().splitlines()) == 3
    names: dict = {}
    exec(lines, names)  # noqa: S102
    return names["mammoth"]


@pytest.mark.parametrize("size", [4, 5])  # of 12 samples: the last batch is ragged at 5
def test_mammoths_online_ewc_in_three_lines(size):
    lam, gamma, anywhere, model = 3.0, 0.7, moved(network()), network()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    penalty = QuadraticPenalty(lam, "decay", gamma)
    for seed in (0, 1):
        batches = split(*samples(12, seed), size)
        new = mammoth_fisher(model, batches, size)
        expected = {name: gamma * expected[name] + new[name] for name in new}
        found = mean_moments(model, batches, the_pages_lines(), moment="square")
        share = 12 / (len(batches) * size)  # N over batches × batch size
        penalty.consolidate(model, {name: share * value for name, value in found.items()})
        assert_same(penalty.importance, expected)
        theirs = lam * weighted_square(anywhere, expected, values(model))
        assert penalty.value(anywhere).item() == pytest.approx(theirs.item(), rel=1e-10)


def test_what_a_pass_costs_can_be_measured_as_the_page_says(capsys):
    (lines,) = re.findall(r"```py\n(import time.*?)```", PAGE, re.DOTALL)
    exec(lines.replace("(64,", "(2,"), {})  # noqa: S102  # fewer images, so that it is quick
    assert re.match(r"MAS / plain pass: \d+\.\d\d \(", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["mas_sequence", "mas_pairs"])
def test_the_papers_experiments_are_trained_as_the_authors_code_does(name):
    """MAS.py: 100 epochs of SGD with momentum, in batches of 150, at 0.0008, times 0.1 every 54 epochs."""
    config = load_config(ROOT / f"configs/{name}.yaml", try_data=False)
    training = CellTraining(**config.training.model_dump())
    assert (training.epochs, training.batch_size) == (100, 150)
    assert (training.optimizer.name, training.momentum) == ("sgd", 0.9)
    for epoch in (0, 53, 54, 99):
        assert training.lr * training.rate_factor(epoch) == pytest.approx(0.0008 * 0.1 ** (epoch // 54))
