"""Models by name: their sizes, their heads, and clear words where one does not fit."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from mas.benchmarks import split
from mas.experiments.build import model_for
from mas.experiments.config.schema import MODEL_MODELS
from mas.experiments.networks import MODELS, GrowingHead, MultiHead, build_model
from mas.experiments.training import train_cell
from mas.strategies import STRATEGIES
from tests.experiments.builders import first_cell

SMALL = {
    "torchvision": {"model": "mobilenet_v3_small"},
    "import": {"function": "tests.experiments.test_networks:own", "units": 7},
    "resnet18": {"width": 8},
    "vgg_small": {"width": 4},
    "vit_tiny": {"depth": 1, "width": 12},
    "small_cnn": {"width": 4},
}


def own(shape, units):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], units))


def model_options(name, **options):
    return MODEL_MODELS[name].model_validate({"name": name, **options})


def built(name, shape, classes, seed=0, **options):
    """Build a network as a config names it."""
    checked = model_options(name, **options)
    return build_model(partial(checked.entry, **checked.arguments()), shape, classes, seed=seed)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("name", MODEL_MODELS)
def test_every_model_takes_grey_and_colour_and_depends_on_the_seed_alone(name, shape):
    if name == "alexnet":
        shape = (shape[0], 64, 64)
    a, b, c = (built(name, shape, [5], seed, **SMALL.get(name, {})) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a[1].weight, c[1].weight)
    output = a.eval()(torch.randn(2, *shape))
    assert output.shape == (2, 5)
    assert torch.isfinite(output).all()


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_sizes_are_those_of_the_papers():
    assert count(built("mlp", (1, 28, 28), [10], hidden=[400, 400])) == 784 * 400 + 400 * 402 + 4010
    assert count(built("lenet", (1, 28, 28), [10])) == 61706
    assert count(built("resnet18", (3, 224, 224), [1000])) == 11689512  # torchvision's
    assert count(built("resnet32", (3, 32, 32), [10])) == pytest.approx(464154 + 2560 + 192, abs=2048)
    assert count(built("torchvision", (3, 224, 224), [1000], model="alexnet")) == 61100840


def test_resnet18_is_torchvisions():
    import torchvision

    ours = built("resnet18", (3, 64, 64), [10]).eval()
    theirs = torchvision.models.resnet18(num_classes=10)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(p)
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs.eval()(x), atol=1e-5)


def test_task_scenarios_get_a_head_of_its_own_size_for_each_task():
    benchmark = split("digits", experiences=[5, 3, 2], scenario="task")
    model = model_for(benchmark, model_options("mlp", hidden=[8], head="shared"), seed=0)
    assert [head.out_features for head in model.heads] == [5, 3, 2]
    x, tasks = torch.randn(4, 1, 8, 8), torch.tensor([2, 0, 1, 2])
    mixed = model(x, tasks)
    assert torch.equal(mixed[0, :2], model(x, 2)[0])
    assert torch.isneginf(mixed[0, 2:]).all()
    assert {task: logits.shape[1] for task, logits in model(x, None).items()} == {0: 5, 1: 3, 2: 2}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("joint", "der++")])
def test_a_growing_head_grows_by_learning_not_by_evaluation(name):
    """Experiences not yet learned are all wrong: no unit stands for their classes."""
    benchmark = {"stream": "split", "dataset": "digits", "experiences": 3, "scenario": "class", "class_order": "fixed"}
    cell = first_cell(name, benchmark=benchmark, model={"name": "mlp", "hidden": [16], "head": "growing"})
    outcome = train_cell(cell).outcome
    assert outcome.status == "finished"
    for trained_on, row in enumerate(outcome.accuracy):
        assert row[trained_on + 1 :] == [0.0] * (2 - trained_on)
    shared = cell.settings.model.model_copy(update={"head": "shared"})
    other = replace(cell, settings=cell.settings.model_copy(update={"model": shared}))
    assert train_cell(other).outcome.accuracy != outcome.accuracy


def test_a_growing_head_has_the_classes_so_far_and_keeps_what_it_knows():
    benchmark = split("digits", experiences=5, scenario="class", class_order="fixed")
    model = model_for(benchmark, model_options("mlp", hidden=[8], head="growing"), seed=0)
    whole = model_for(benchmark, model_options("mlp", hidden=[8], head="shared"), seed=0)[1].weight
    head = model[1]
    assert isinstance(head, GrowingHead)
    for number, experience in enumerate(benchmark.train_stream, 1):
        before = head.weight.detach().clone()
        head.adaptation(experience)
        assert model(torch.randn(3, 1, 8, 8)).shape == (3, 2 * number)
        assert torch.equal(head.weight[: len(before)], before)
    assert torch.equal(head.weight, whole)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torchvision", {"model": "resnet17"}, "model is 'resnet17'; torchvision has alexnet"),
        ("torchvision", {"model": "squeezenet1_0"}, "no linear layer"),
        ("vit_tiny", {"patch": 5}, "patch is 5; images of 28x28 need one that divides their side"),
        ("import", {"function": "nowhere:f"}, "function is 'nowhere:f'; expected package.module:name"),
        ("alexnet", {}, r"the model does not take inputs of shape \(1, 28, 28\)"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        built(name, (1, 28, 28), [2], **options)


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (lambda shape: nn.Conv2d(1, 2, 3), r"shape \(1, 2, 6, 6\)"),
        (lambda shape: nn.Sequential(nn.Flatten(0, 2), nn.LSTM(8, 4)), "the model gave tuple for one input"),
    ],
)
def test_a_body_gives_one_vector_for_each_input(body, got):
    with pytest.raises(ValueError, match=got):
        build_model(body, (1, 8, 8), [2], seed=0)


# Law 10: initial weights.


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(0)
    a = built("mlp", (1, 8, 8), [2], 3, hidden=[5])
    state = torch.get_rng_state()
    b = built("mlp", (1, 8, 8), [2], 3, hidden=[5])
    c = built("mlp", (1, 8, 8), [2], 4, hidden=[5])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_multi_head_gives_each_sample_its_tasks_head():
    model = MultiHead(nn.Linear(3, 4), 4, [2, 2, 2])
    x, tasks = torch.randn(5, 3), torch.tensor([2, 0, 2, 1, 0])
    expected = torch.stack([model.heads[t](model.body(sample)) for sample, t in zip(x, tasks.tolist(), strict=True)])
    assert torch.allclose(model(x, tasks), expected)
    assert torch.allclose(model(x, 1), model.heads[1](model.body(x)))


def test_every_model_has_a_line_that_describes_it():
    assert set(MODEL_MODELS) == {*MODELS, "import"}
    assert all(model.__doc__ for model in MODELS.values())
