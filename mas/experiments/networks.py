"""Networks by name, with heads as the scenario asks: one shared, one that grows, or one per task."""

import importlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

import torch
from annotated_types import MaxLen
from avalanche.models import DynamicModule, MultiTaskModule
from torch import Tensor, nn

from mas.annotations import Count, Layers
from mas.experiments.avalanche_types import Experience

Activation = Literal["relu", "tanh", "gelu"]
Norm = Literal["none", "batch"]  # batch: BatchNorm before each activation
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    shape: Sequence[int],
    hidden: Annotated[list[Count], MaxLen(200)] = [256, 256],  # noqa: B006 - never changed
    activation: Activation = "relu",
    norm: Norm = "none",
) -> nn.Module:
    """Fully connected network on the flattened input; ``hidden`` lists the units of each layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise([prod(shape), *hidden]):
        layers.append(nn.Linear(inputs, outputs))
        if norm == "batch":
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(_ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def lenet(shape: Sequence[int]) -> nn.Module:
    """LeNet-5: two convolutions and two linear layers, with ReLU and max pooling (LeCun 1998)."""
    large_enough = min(shape[1:]) >= 14  # for a second convolution without padding
    convolutions = nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=0 if large_enough else 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    features = _features(convolutions, shape)
    return nn.Sequential(
        convolutions,
        nn.Linear(features, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    )


def small_cnn(shape: Sequence[int], width: Count = 32, hidden: Count = 256) -> nn.Module:
    """Four convolutions and a linear layer: the small CNN of SI and many others (Zenke 2017)."""
    wide = 2 * width
    convolutions = nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, wide, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(wide, wide, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    features = _features(convolutions, shape)
    return nn.Sequential(convolutions, nn.Linear(features, hidden), nn.ReLU())


def resnet18(shape: Sequence[int], width: Count = 64, stem: Literal["auto", "cifar", "imagenet"] = "auto") -> nn.Module:
    """ResNet-18 with BatchNorm; ``stem: auto`` keeps the resolution of images below 64 pixels, as cifar (He 2016)."""
    small = stem == "cifar" or (stem == "auto" and min(shape[1:]) < 64)
    return _resnet(shape[0], [width, 2 * width, 4 * width, 8 * width], blocks=2, small=small)


def resnet32(shape: Sequence[int]) -> nn.Module:
    """ResNet-32 with BatchNorm: three stages of five blocks, 16, 32 and 64 channels, for CIFAR (He 2016)."""
    return _resnet(shape[0], [16, 32, 64], blocks=5, small=True)


def vgg_small(shape: Sequence[int], width: Count = 64, hidden: Count = 128) -> nn.Module:
    """VGG-9: six convolutions and two linear layers, for Tiny-ImageNet (De Lange 2021, small)."""
    widths = [(width, 1), (2 * width, 1), (4 * width, 2), (4 * width, 2)]
    layers: list[nn.Module] = []
    channels = shape[0]
    for out, repeats in widths:
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    convolutions = nn.Sequential(*layers, nn.Flatten())
    features = _features(convolutions, shape)
    return nn.Sequential(
        convolutions,
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
    )


def all_cnn(shape: Sequence[int], width: Count = 96) -> nn.Module:
    """All-convolutional network: eight convolutions with BatchNorm, two with stride, no pooling (Springenberg 2015)."""
    layers: list[nn.Module] = []
    channels = shape[0]
    wide = 2 * width
    plan = [  # channels, stride, kernel size
        (width, 1, 3),
        (width, 1, 3),
        (wide, 2, 3),
        (wide, 1, 3),
        (wide, 1, 3),
        (wide, 2, 3),
        (wide, 1, 3),
        (wide, 1, 1),
    ]
    for out, stride, kernel in plan:
        layers.append(nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False))
        layers.append(nn.BatchNorm2d(out))
        layers.append(nn.ReLU())
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vit_tiny(
    shape: Sequence[int], patch: Count = 4, depth: Layers = 6, heads: Count = 3, width: Count = 192
) -> nn.Module:
    """Small vision transformer; ``patch`` must divide the image's side, ``heads`` the width (Dosovitskiy 2021)."""
    from torchvision.models import VisionTransformer

    _, height, side = shape
    if height != side or side % patch:
        raise ValueError(f"patch is {patch}; images of {height}x{side} need one that divides their side")
    if width % heads:
        raise ValueError(f"heads is {heads}; a width of {width} needs a number that divides it")
    transformer = VisionTransformer(side, patch, depth, heads, width, mlp_dim=4 * width)
    return _on_colour(shape, _without_head(transformer))


def alexnet(shape: Sequence[int], weights: str | None = None) -> nn.Module:
    """Torchvision's AlexNet; ``weights: DEFAULT`` are those trained on ImageNet (Krizhevsky 2012)."""
    return torchvision_model(shape, "alexnet", weights)


def torchvision_model(shape: Sequence[int], model: str, weights: str | None = None) -> nn.Module:
    """Any classifier of torchvision by its name there, without its last layer; ``weights`` as torchvision has them."""
    from torchvision.models import get_model

    check_weights(model, weights)
    return _on_colour(shape, _without_head(get_model(model, weights=weights)))


def check_weights(model: str, weights: str | None) -> None:
    """Raise ValueError if torchvision has no such classifier, or no such weights of it."""
    from torchvision.models import get_model_weights

    known = torchvision_models()
    if model not in known:
        raise ValueError(f"model is {model!r}; torchvision has {', '.join(known)}")
    known_weights = dict.fromkeys([*get_model_weights(model).__members__, "DEFAULT"])
    if weights is not None and weights not in known_weights:
        raise ValueError(f"weights is {weights!r}; {model} has {', '.join(known_weights)}")


def torchvision_models() -> list[str]:
    """Return the names of torchvision's classifiers."""
    from torchvision.models import list_models

    return list(list_models(importlib.import_module("torchvision.models")))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "small_cnn": small_cnn,
    "resnet18": resnet18,
    "resnet32": resnet32,
    "vgg_small": vgg_small,
    "all_cnn": all_cnn,
    "alexnet": alexnet,
    "vit_tiny": vit_tiny,
    "torchvision": torchvision_model,
}
"""Name in YAML -> function of (input shape, options) that returns the body; a head is put on top."""


def build_model(
    make_body: Callable[[Sequence[int]], nn.Module],
    shape: Sequence[int],
    classes: Sequence[int],
    *,
    seed: int,
    growing: bool = False,
) -> nn.Module:
    """Build a network whose initial weights depend on ``seed`` alone.

    Args:
        make_body: ``make_body(shape)`` returns the body, such as a function of `MODELS` with its options.
        shape: of one input, without the sample axis.
        classes: outputs of each head: one number for a shared head; more make a `MultiHead` that
            takes task labels.
        seed: of the initial weights; the global random stream is left as it was.
        growing: whether a shared head shows only the classes of experiences so far.

    Raises:
        ValueError: the body does not take such inputs, or does not return (N, features).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = make_body(tuple(shape))
        features = _features(body, shape)
        if len(classes) > 1:
            return MultiHead(body, features, classes)
        head = nn.Linear(features, classes[0])
        return nn.Sequential(body, GrowingHead(head) if growing else head)


class MultiHead(MultiTaskModule):
    """A body and one linear head per task, all there from the start.

    Avalanche's own multi-head classifier makes a head when a task first appears, from the global
    random stream: then initial weights depend on what was drawn before.
    """

    def __init__(self, body: nn.Module, features: int, classes: Sequence[int]):
        super().__init__()
        self.body = body
        self.heads = nn.ModuleList(nn.Linear(features, n) for n in classes)
        self.max_class_label = max(classes)

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Tensor | dict[int, Tensor]:
        """Return logits of shape (N, classes), each sample's by its task's head; without tasks, those of each head.

        Where tasks are mixed, the logits of classes that a sample's head lacks are -inf.
        """
        features = self.body(x)
        if task_labels is None:
            return {task: head(features) for task, head in enumerate(self.heads)}
        tasks = [task_labels] if isinstance(task_labels, int) else task_labels.unique().tolist()
        if len(tasks) == 1:
            return self.heads[tasks[0]](features)
        output = features.new_full((len(x), self.max_class_label), -torch.inf)
        for task in tasks:
            rows = task_labels == task
            logits = self.heads[task](features[rows])
            output[rows, : logits.shape[1]] = logits
        return output


class GrowingHead(DynamicModule):
    """A linear head with one output for each class so far; the initial weights of all are drawn at the start."""

    def __init__(self, whole: nn.Linear):
        super().__init__()
        self.register_buffer("first_weight", whole.weight.detach().clone())
        self.register_buffer("first_bias", whole.bias.detach().clone())
        self.weight = nn.Parameter(self.first_weight[:1].clone())
        self.bias = nn.Parameter(self.first_bias[:1].clone())

    def adaptation(self, experience: Experience) -> None:
        """Add outputs for the new classes of an experience that is to be learned; evaluation adds none."""
        if not self.training:
            return
        needed = 1 + max(experience.classes_in_this_experience)
        present = len(self.bias)
        if needed > present:
            new_weight = self.first_weight[present:needed]
            new_bias = self.first_bias[present:needed]
            self.weight = nn.Parameter(torch.cat([self.weight.detach(), new_weight]))
            self.bias = nn.Parameter(torch.cat([self.bias.detach(), new_bias]))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (N, classes so far)."""
        return nn.functional.linear(features, self.weight, self.bias)


def _resnet(channels: int, widths: Sequence[int], blocks: int, small: bool) -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    first = widths[0]
    layers = _stem(channels, first, small)
    before = first
    for width in widths:
        for block in range(blocks):
            stride = 2 if block == 0 and width != first else 1
            shortcut = None
            if width != before:
                projection = nn.Conv2d(before, width, 1, stride, bias=False)
                shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
            layers.append(BasicBlock(before, width, stride, shortcut))
            before = width
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def _stem(channels: int, width: int, small: bool) -> list[nn.Module]:
    """Return the layers before the blocks; those for small images keep the resolution."""
    # made for large images too, where it is not used: its random draws keep later weights as they always were
    keeps_resolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    norm = nn.BatchNorm2d(width)
    if small:
        return [keeps_resolution, norm, nn.ReLU()]
    halves_resolution = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    pooling = nn.MaxPool2d(3, stride=2, padding=1)
    return [halves_resolution, norm, nn.ReLU(), pooling]


def _without_head(model: nn.Module) -> nn.Module:
    """Replace the last linear layer by the identity."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear layer at its end that a head could replace")
    parent, _, name = names[-1].rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    return model


def _on_colour(shape: Sequence[int], body: nn.Module) -> nn.Module:
    """Let a network for colour images take grey ones too."""
    return body if shape[0] == 3 else nn.Sequential(_Colour(), body)


class _Colour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


def _features(body: nn.Module, shape: Sequence[int]) -> int:
    """Return the number of features that a body returns for inputs of a shape."""
    if not isinstance(body, nn.Module):
        raise ValueError(f"the model is a {type(body).__name__}; expected a torch.nn.Module")
    was = body.training
    with torch.no_grad():
        try:
            found = body.eval()(torch.zeros(1, *shape))
        except RuntimeError as error:
            raise ValueError(f"the model does not take inputs of shape {tuple(shape)}: {error}") from None
        finally:
            body.train(was)
    if not isinstance(found, Tensor) or found.ndim != 2:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the model gave {got} for one input; a body gives (N, features), on which heads are put")
    return found.shape[1]
