"""Models by name: their sizes, their heads, and clear words where one does not fit."""

import pytest
import torch
from mas.experiments.cells import Cell, expand
from mas.experiments.loading import load_config
from mas.experiments.models import MODELS, GrowingHead, build_model, model_for
from torch import nn

from mas.benchmarks import split
from mas.experiments.cell import run_cell
from mas.strategies import STRATEGIES

SMALL = {
    "torchvision": {"model": "mobilenet_v3_small"},
    "import": {"function": "tests.experiments.test_models:own", "options": {"units": 7}},
    "resnet18": {"width": 8},
    "vgg_small": {"width": 4},
    "vit_tiny": {"depth": 1, "width": 12},
    "small_cnn": {"width": 4},
}


def own(shape, units):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], units))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_grey_and_colour_and_depends_on_the_seed_alone(name, shape):
    if name == "alexnet":
        shape = (shape[0], 64, 64)
    a, b, c = (build_model(name, SMALL.get(name, {}), shape, [5], seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a[1].weight, c[1].weight)
    output = a.eval()(torch.randn(2, *shape))
    assert output.shape == (2, 5)
    assert torch.isfinite(output).all()


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_sizes_are_those_of_the_papers():
    assert count(build_model("mlp", {"hidden": [400, 400]}, (1, 28, 28), [10], 0)) == 784 * 400 + 400 * 402 + 4010
    assert count(build_model("lenet", {}, (1, 28, 28), [10], 0)) == 61706
    assert count(build_model("resnet18", {}, (3, 224, 224), [1000], 0)) == 11689512  # torchvision's
    assert count(build_model("resnet32", {}, (3, 32, 32), [10], 0)) == pytest.approx(464154 + 2560 + 192, abs=2048)
    assert count(build_model("torchvision", {"model": "alexnet"}, (3, 224, 224), [1000], 0)) == 61100840


def test_resnet18_is_torchvisions():
    import torchvision

    ours, theirs = build_model("resnet18", {}, (3, 64, 64), [10], 0).eval(), torchvision.models.resnet18(num_classes=10)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(p)
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs.eval()(x), atol=1e-5)


def test_task_scenarios_get_a_head_of_its_own_size_for_each_task():
    benchmark = split("digits", experiences=[5, 3, 2], scenario="task")
    model = model_for(benchmark, {"name": "mlp", "hidden": [8], "head": "shared"}, seed=0)
    assert [head.out_features for head in model.heads] == [5, 3, 2]
    x, tasks = torch.randn(4, 1, 8, 8), torch.tensor([2, 0, 1, 2])
    mixed = model(x, tasks)
    assert torch.equal(mixed[0, :2], model(x, 2)[0])
    assert torch.isneginf(mixed[0, 2:]).all()
    assert {task: logits.shape[1] for task, logits in model(x, None).items()} == {0: 5, 1: 3, 2: 2}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("joint", "der++")])
def test_a_growing_head_grows_by_learning_not_by_evaluation(name, tmp_path):
    """Experiences not yet learned are all wrong: no unit stands for their classes."""
    (tmp_path / "c.yaml").write_text(
        f"""
experiment: forgetting
benchmark: {{stream: split, dataset: digits, experiences: 3, scenario: class, class_order: fixed}}
model: {{name: mlp, hidden: [16], head: growing}}
training: {{epochs: 1, batch_size: 64}}
strategies: [{{name: {name}}}]
seeds: 1
"""
    )
    (cell,) = expand(load_config(tmp_path / "c.yaml"))
    result = run_cell(cell)
    assert result["status"] == "finished"
    for trained_on, row in enumerate(result["accuracy"]):
        assert row[trained_on + 1 :] == [0.0] * (2 - trained_on)
    other = Cell(cell.label, cell.seed, cell.settings | {"model": cell.settings["model"] | {"head": "shared"}})
    assert run_cell(other)["accuracy"] != result["accuracy"]


def test_a_growing_head_has_the_classes_so_far_and_keeps_what_it_knows():
    benchmark = split("digits", experiences=5, scenario="class", class_order="fixed")
    model = model_for(benchmark, {"name": "mlp", "hidden": [8], "head": "growing"}, seed=0)
    whole = model_for(benchmark, {"name": "mlp", "hidden": [8], "head": "shared"}, seed=0)[1].weight
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
        (
            "import",
            {"function": "tests.experiments.test_models:own", "options": {"units": 3, "n": 1}},
            "unexpected keyword",
        ),
        ("alexnet", {}, r"the model does not take inputs of shape \(1, 28, 28\)"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, options, (1, 28, 28), [2], 0)
