"""Task embeddings against plain loops and closed forms; distances against sums by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mas import TaskEmbedding, distance_matrix, embed
from mas.importance import DRAWN
from mas.task2vec import (
    DISTANCES,
    asymmetric_distance,
    correlation_distance,
    cosine_distance,
    jensen_shannon,
    kl_divergence,
    stream_complexity,
    stream_heterogeneity,
)
from tests.test_gradients import assert_unchanged, snapshot


class Probe(nn.Module):
    """A convolution, a transposed convolution, BatchNorm, a linear layer, and a head called fc."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.hidden = nn.Linear(2 * 5 * 5, 6)
        self.fc = nn.Linear(6, 10)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = self.up(x).relu().flatten(1)
        return self.fc(self.drop(self.hidden(x).relu()))


def probe():
    torch.manual_seed(0)
    made = Probe().double().train()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2)
    return made


def task(seed=0, samples=30, classes=3, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(samples) % classes
    return [(x + shift + y[:, None, None, None] * 0.5, y)]


def split(batches, size):
    ((x, y),) = batches
    return list(zip(x.split(size), y.split(size), strict=True))


def test_an_exact_embedding_equals_a_loop_over_samples_and_classes():
    model, batches = probe(), task()
    found = embed(model, batches, weight_decay=0.01)
    ((x, y),) = batches
    model.eval()
    features = []
    hook = model.fc.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].detach()))
    model(x)
    hook.remove()
    weight = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(20000):  # plain gradient descent, to the same optimum
        loss = F.cross_entropy(features[0] @ weight.T + bias, y) + 0.005 * weight.square().sum()
        for own, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            own.data -= 0.5 * gradient
    model.fc = nn.Linear(6, 3).double()
    model.fc.weight.data, model.fc.bias.data = weight.detach(), bias.detach()
    layers = [model.conv.weight, model.up.weight, model.hidden.weight]
    total = [torch.zeros_like(layer) for layer in layers]
    for sample in x:
        log_p = model(sample[None]).log_softmax(1)[0]
        for c in range(3):
            gradients = torch.autograd.grad(log_p[c], layers, retain_graph=True)
            for own, gradient in zip(total, gradients, strict=True):
                own.add_(log_p[c].exp().detach() * gradient.square() / len(x))
    expected = torch.cat([total[0].mean((1, 2, 3)), total[1].mean((0, 2, 3)), total[2].mean(1)])
    assert found.vector.shape == (3 + 2 + 6,)
    error = (found.vector - expected).abs().max()
    assert error < 1e-6 * expected.max()  # the head is fitted to about the square root of rounding
    assert found.norm == pytest.approx(expected.sum().item())
    assert (found.samples, found.classes) == (30, 3)
    assert found.head_loss == pytest.approx(F.cross_entropy(features[0] @ weight.T + bias, y).item())


@pytest.mark.parametrize("labels", DRAWN)
def test_drawn_estimators_agree_within_their_error(labels):
    batches = task(samples=12) * 300
    expected = embed(probe(), batches).vector
    found = embed(probe(), batches, labels=labels).vector
    assert (found - expected).abs().max() < 0.1 * expected.max()


def test_measuring_changes_nothing():
    model, batches = probe(), task()
    before = snapshot(model)
    embed(model, batches)
    assert_unchanged(before, snapshot(model))
    assert model.fc.out_features == 10


def test_batches_and_names_of_classes_do_not_matter():
    batches = task()
    ((x, y),) = batches
    whole = embed(probe(), batches)
    for other in (split(batches, 7), [(x, 100 - 3 * y)]):
        found = embed(probe(), other)
        assert (found.vector - whole.vector).abs().max() < 1e-6 * whole.vector.max()
        assert cosine_distance(found, whole) < 1e-9


def test_the_head_is_found_or_named():
    assert torch.equal(embed(probe(), task()).vector, embed(probe(), task(), head="fc").vector)


def rows_of_class(row, samples=400):
    """Return a task of two classes that differ in one row of the image."""
    generator = torch.Generator().manual_seed(row)
    x = torch.randn(samples, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(samples) % 2
    x[:, 0, row] += 3 * y[:, None]
    return x, y


def test_a_task_is_nearer_to_its_other_half_than_to_others():
    tasks = [rows_of_class(row) for row in (0, 2, 4, 5)]
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 100), nn.ReLU(), nn.Linear(100, 2)).double()
    halves = [[embed(wide, [(x[k : k + 200], y[k : k + 200])]) for k in (0, 200)] for x, y in tasks]
    distances = torch.tensor([[cosine_distance(a[0], b[1]) for b in halves] for a in halves])
    assert distances.argmin(1).tolist() == [0, 1, 2, 3]


def embedding(*values, probe="p", scale=1.0):
    vector = torch.tensor(values, dtype=torch.float64)
    return TaskEmbedding(vector, torch.full_like(vector, scale), probe)


def test_distances_equal_sums_by_hand():
    a, b = embedding(1.0, 3.0), embedding(3.0, 1.0)
    x, y = (0.25, 0.75), (0.75, 0.25)
    cosine = sum(p * q for p, q in zip(x, y, strict=True)) / (x[0] ** 2 + x[1] ** 2)
    assert cosine_distance(a, b) == pytest.approx(1 - cosine)
    to_trivial = 1 - (0.5 * 0.5 + 0.75 * 0.25) / math.hypot(0.5, 0.75) / math.hypot(0.5, 0.25)
    assert asymmetric_distance(a, b) == pytest.approx(1 - cosine - 0.15 * to_trivial)
    assert kl_divergence(a, b) == pytest.approx(0.5 * (4 / 2 - 1 - math.log(2)) + 0.5 * (2 / 4 - 1 - math.log(0.5)))
    assert correlation_distance(a, b) == pytest.approx(2)
    middle = 2 / (1 / 2 + 1 / 4)
    terms = [middle / h - 1 - math.log(middle / h) for h in (2, 4)]
    assert jensen_shannon(a, b) == pytest.approx(0.25 * 2 * sum(terms))
    assert stream_heterogeneity([a, b, a]) == pytest.approx(2 * (1 - cosine))
    assert stream_complexity([a, b]) == pytest.approx(2 * to_trivial)


@pytest.mark.parametrize("name", DISTANCES)
def test_laws_of_distances(name):
    generator = torch.Generator().manual_seed(0)
    many = [TaskEmbedding(torch.rand(20, generator=generator).double(), torch.ones(20).double(), "p") for _ in range(4)]
    matrix = distance_matrix(many, name)
    symmetric = torch.allclose(matrix, matrix.T, atol=1e-12)
    assert symmetric == (name not in ("asymmetric", "kl"))
    if name != "asymmetric":
        assert matrix.diagonal().abs().max() < 1e-12
        assert (matrix + torch.eye(4) > 1e-6).all()


def test_filters_that_no_task_uses_do_not_count():
    with_unused = cosine_distance(embedding(1.0, 3.0, 0.0), embedding(3.0, 1.0, 0.0))
    assert with_unused == pytest.approx(cosine_distance(embedding(1.0, 3.0), embedding(3.0, 1.0)))
    assert cosine_distance(embedding(0.0), embedding(0.0)) == 0
    assert cosine_distance(embedding(0.0), embedding(1.0)) == 1


def test_saved_and_loaded(tmp_path):
    found = embed(probe(), task(), task="ünïcode")
    found.save(tmp_path / "e.npz")
    again = TaskEmbedding.load(tmp_path / "e.npz")
    assert torch.equal(again.vector, found.vector)
    assert torch.equal(again.scale, found.scale)
    plain = ("probe", "task", "samples", "classes", "labels", "head_loss", "head_accuracy")
    assert [getattr(again, key) for key in plain] == [getattr(found, key) for key in plain]
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no task embedding"):
        TaskEmbedding.load(tmp_path / "x.npz")


ONE_CLASS = torch.zeros(30, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: embed(probe(), []), "batches gave no sample"),
        (lambda: embed(probe(), [task()[0][0]]), "an embedding needs batches of"),
        (lambda: embed(probe(), [(task()[0][0], ONE_CLASS)]), "a task has two classes or more"),
        (lambda: embed(probe(), task(), head="fx"), "head is 'fx'; the probe has no such module"),
        (lambda: embed(probe(), task(), head="up"), "a head needs"),
        (lambda: embed(nn.Linear(6, 2).double(), task()), "no last layer that a head could replace"),
        (lambda: embed(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double(), task()), "nothing to embed in"),
        (lambda: embed(probe(), task(), weight_decay=0), "weight_decay is 0"),
        (lambda: cosine_distance(embedding(1.0), embedding(1.0, probe="q")), "embeddings by different probes"),
        (lambda: distance_matrix([embedding(1.0)], "cosin"), "distance is 'cosin'; known are"),
    ],
)
def test_mistakes_are_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        change()
    assert "\n" not in str(error.value)


def test_another_body_is_another_probe_and_another_head_is_not():
    batches, first, other = task(), probe(), probe()
    nn.init.normal_(first.fc.weight)
    assert embed(first, batches).probe == embed(other, batches).probe
    other.conv.weight.data[0, 0, 0, 0] += 1e-9
    assert embed(first, batches).probe != embed(other, batches).probe
