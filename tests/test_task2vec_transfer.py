"""Selection of experts by hand-made numbers; fine-tuning against a plain loop; what both leave as it was."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from mas import Reachability, distance_matrix, head_accuracy, rank_experts, reachability, selection_score
from mas.task2vec import DISTANCES
from tests.task2vec_cases import embedding, linear_probe, linear_task, probe, random_embeddings, split, task
from tests.test_gradients import assert_unchanged, snapshot


@pytest.mark.parametrize("name", DISTANCES)
def test_experts_are_ranked_from_the_nearest(name):
    *experts, new = random_embeddings(6)
    to_new = distance_matrix([*experts, new], name)[:5, 5]
    assert rank_experts(experts, new, distance=name) == to_new.argsort().tolist()


def test_the_default_is_the_asymmetric_distance():
    *experts, new = random_embeddings(6)
    assert rank_experts(experts, new) == rank_experts(experts, new, distance="asymmetric")
    with pytest.raises(ValueError, match="distance is 'far'; known are"):
        rank_experts(experts, new, distance="far")


NAN = math.nan


def test_a_selection_score_by_hand():
    distances = torch.tensor([[0.1, 0.9], [0.2, 0.1], [0.3, NAN], [0.4, 0.5]])
    errors = torch.tensor([[0.12, 0.4], [0.10, NAN], [0.20, 0.1], [0.30, 0.2]])
    score = selection_score(distances, errors)
    expected = {"selected": [0.12, 0.2], "best": [0.10, 0.2], "chance": [0.18, 0.3], "rank_correlation": [0.8, 1.0]}
    for name, values in expected.items():
        assert getattr(score, name).tolist() == pytest.approx(values, rel=1e-6), name
    assert score.selected_excess == pytest.approx((0.2 + 0) / 2, rel=1e-6)
    assert score.chance_excess == pytest.approx((0.8 + 0.5) / 2, rel=1e-6)


def test_tasks_without_an_error_are_left_out_of_the_excess():
    distances = torch.tensor([[0.1, 0.1], [0.2, 0.2]])
    score = selection_score(distances, torch.tensor([[0.3, 0.5], [0.2, 0.0]]))
    assert score.selected_excess == pytest.approx(0.5)
    assert score.best.tolist() == pytest.approx([0.2, 0.0])
    none = selection_score(distances, torch.zeros(2, 2))
    assert math.isnan(none.selected_excess)
    assert none.rank_correlation.isnan().all()


def test_mistakes_of_a_selection_score():
    with pytest.raises(ValueError, match=r"distances have shape \(2,\), errors \(2, 1\); give both \(experts, tasks\)"):
        selection_score(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="task 1 has no expert with a distance and an error"):
        selection_score(torch.tensor([[0.1, NAN]]), torch.tensor([[0.1, 0.1]]))
    empty = selection_score(torch.zeros(3, 0), torch.zeros(3, 0))
    assert empty.best.shape == (0,)


def loop(model, train, test, steps, lr, order):
    """Fine-tune by SGD with momentum 0.9, written out, and return the accuracy on the test batch."""
    model.fc = nn.Linear(6, 3).double()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    model.train()
    parameters = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]
    for step in range(steps):
        x, y = train[order[step]]
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        for p, momentum, gradient in zip(parameters, momenta, gradients, strict=True):
            momentum.mul_(0.9).add_(gradient)
            p.data.sub_(lr * momentum)
    model.eval()
    ((x, y),) = test
    return (model(x).argmax(1) == y).double().mean().item()


def without_dropout():
    made = probe()
    made.drop = nn.Identity()
    return made


def test_fine_tuning_equals_a_plain_loop():
    train, test = split(task(seed=1), 10), task(seed=2)
    found = reachability(without_dropout(), train, test, steps=6, lr=0.05, every=2)
    generator = torch.Generator().manual_seed(0)
    torch.randint(2**31, (), generator=generator)  # the seed of dropout comes first
    order = [i for _ in range(2) for i in torch.randperm(3, generator=generator).tolist()]
    expected = [loop(without_dropout(), train, test, steps, 0.05, order) for steps in (0, 2, 4, 6)]
    assert found.steps == (0, 2, 4, 6)
    assert found.accuracies == pytest.approx(expected)
    assert found.accuracy == found.accuracies[-1]
    assert len({*found.accuracies}) > 1


def test_steps_to_an_accuracy():
    train, test = split(task(seed=1), 10), task(seed=2)
    tune = {"steps": 7, "lr": 0.05, "every": 3}
    found = reachability(probe(), train, test, **tune)
    assert found.steps == (0, 3, 6, 7)
    assert found.steps_to_accuracy is None
    first = found.accuracies[0]  # an accuracy that is met exactly counts
    assert reachability(probe(), train, test, **tune, accuracy=first).steps_to_accuracy == 0
    best = max(found.accuracies)
    expected = found.steps[found.accuracies.index(best)]
    assert reachability(probe(), train, test, **tune, accuracy=best).steps_to_accuracy == expected
    assert reachability(probe(), train, test, **tune, accuracy=1.0).steps_to_accuracy is None
    curve = Reachability((0, 5, 10), (0.1, 0.8, 0.7), 5)
    assert curve.accuracy == 0.7


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"optimizer": "adam"}])
def test_fine_tuning_changes_nothing_and_repeats(options):
    model, train, test = probe(), split(task(seed=1), 10), task(seed=2)
    model.conv.weight.requires_grad_(False)
    before = snapshot(model)
    first = reachability(model, train, test, steps=6, lr=0.05, every=2, **options)
    assert_unchanged(before, snapshot(model))
    torch.manual_seed(123)
    assert reachability(model, train, test, steps=6, lr=0.05, every=2, **options) == first


def test_frozen_trains_the_head_to_its_optimum():
    train, test = task(seed=1), task(seed=2)
    options = {"steps": 3000, "lr": 0.5, "every": 3000}
    found = reachability(probe(), train, test, **options, frozen=True)
    assert found.accuracy == head_accuracy(probe(), train, test, weight_decay=1e-6)


def test_a_fitted_head_is_scored_on_the_test_batches():
    x, y = linear_task(samples=200)
    train, test = [(x[:100], y[:100])], [(x[100:], y[100:])]
    model = linear_probe()
    before = snapshot(model)
    found = head_accuracy(model, train, test, weight_decay=0.1)
    assert_unchanged(before, snapshot(model))
    assert found == head_accuracy(model, split(train, 7), split(test, 13), head="1", weight_decay=0.1)
    features = (x @ model[0].weight.detach().T).numpy()
    theirs = LogisticRegression(C=1 / (0.1 * 100), tol=1e-10, max_iter=10_000)
    theirs.fit(features[:100], y[:100])
    assert found == pytest.approx(theirs.score(features[100:], y[100:]))
    assert 0.4 < found < 1


def test_names_of_classes_do_not_matter():
    train, test = task(seed=1), task(seed=2)
    renamed = [[(x, 3 * y - 5) for x, y in batches] for batches in (train, test)]
    assert head_accuracy(probe(), *renamed) == head_accuracy(probe(), train, test)
    tune = {"steps": 4, "lr": 0.05, "every": 2}
    assert reachability(probe(), *renamed, **tune) == reachability(probe(), train, test, **tune)


TRAIN, TEST = task(seed=1), task(seed=2)
TUNE = {"steps": 4, "lr": 0.05}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: reachability(probe(), TRAIN, task(classes=4), **TUNE),
            r"test has the classes \[3\], which train lacks",
        ),
        (lambda: reachability(probe(), [], TEST, **TUNE), "train gave no sample"),
        (lambda: reachability(probe(), TRAIN, [], **TUNE), "test gave no sample"),
        (lambda: reachability(probe(), TRAIN, TEST, steps=0, lr=0.1), "steps is 0 and every 10; give numbers above 0"),
        (lambda: reachability(probe(), TRAIN, TEST, **TUNE, optimizer="lion"), "optimizer is 'lion'; known are"),
        (lambda: reachability(probe(), TRAIN, TEST, **TUNE, head="fx"), "head is 'fx'; the probe has no such module"),
        (lambda: head_accuracy(probe(), TRAIN, TEST, weight_decay=0), "weight_decay is 0; give a number above 0"),
        (lambda: head_accuracy(probe(), [(TRAIN[0][0],)], TEST), "needs batches of"),
    ],
)
def test_mistakes_are_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        change()
    assert "\n" not in str(error.value)


def test_fine_tuning_that_diverges_is_said():
    with pytest.raises(FloatingPointError, match=r"the loss at step \d+ of fine-tuning \(lr 1e\+30\)"):
        reachability(probe(), TRAIN, TEST, steps=30, lr=1e30)


def test_an_expert_close_to_a_task_comes_first():
    near, far = embedding(1.0, 0.1, 0.2), embedding(0.1, 3.0, 0.1)
    assert rank_experts([far, near], embedding(1.1, 0.1, 0.2)) == [1, 0]
