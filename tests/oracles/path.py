"""Synaptic Intelligence and RWalk, written out as in their papers: a plain loop, penalties in the loss."""

import torch
from torch import nn

from tests.oracles.moments import fisher_by_loop


def penalised_loss(model, loss, omega, anchor, lam):
    for name, p in model.named_parameters():
        if name in omega:
            loss = loss + lam * (omega[name] * (p - anchor[name]) ** 2).sum()
    return loss


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(model.named_parameters(), found, strict=True)
    }


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def si_by_loop(model, tasks, lam, damping, lr):
    """Zenke 2017, eq. 3 to 5. tasks: a list of lists of batches (x, y)."""
    omega, anchor = {}, {}
    for task in tasks:
        start, w = values(model), {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for x, y in task:
            loss = nn.functional.cross_entropy(model(x), y)
            own = gradients(model, loss)
            whole = gradients(model, penalised_loss(model, loss, omega, anchor, lam))
            before = values(model)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.sub_(lr * whole[name])
                    w[name] += -own[name] * (p - before[name])
        anchor = values(model)
        for name, gain in w.items():
            new = torch.clamp(gain, min=0) / ((anchor[name] - start[name]) ** 2 + damping)
            omega[name] = omega[name] + new if name in omega else new
    return omega


def rwalk_by_loop(model, tasks, lam, alpha, interval, damping, lr):
    """Chaudhry 2018, eq. 6 to 8, with the Fisher information of the last mini-batch of each interval."""
    omega, anchor, fisher, past = {}, {}, {}, {}
    for task in tasks:
        score = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        corner, w = values(model), {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for i, (x, y) in enumerate(task, 1):
            loss = nn.functional.cross_entropy(model(x), y)
            own = gradients(model, loss)
            whole = gradients(model, penalised_loss(model, loss, omega, anchor, lam))
            before = values(model)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.sub_(lr * whole[name])
                    w[name] += -own[name] * (p - before[name])
            if i % interval == 0 or i == len(task):
                new = fisher_by_loop(model, (x, y), "empirical", lambda m, b: m(b[0]))
                for name, p in model.named_parameters():
                    fisher[name] = alpha * new[name] + (1 - alpha) * fisher[name] if name in fisher else new[name]
                    with torch.no_grad():
                        score[name] += w[name] / (0.5 * fisher[name] * (p - corner[name]) ** 2 + damping)
                corner, w = values(model), {name: torch.zeros_like(t) for name, t in w.items()}
        anchor = values(model)
        for name, s in score.items():
            positive = torch.clamp(s, min=0)
            past[name] = (past[name] + positive) / 2 if name in past else positive
        top_fisher, top_score = (max(t.max() for t in d.values()) for d in (fisher, past))
        omega = {name: fisher[name] / top_fisher + past[name] / top_score for name in past}
    return omega
