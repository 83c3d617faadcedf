"""Ready strategies, used as Avalanche's own: give a model and an optimizer, then train and eval.

Each takes every argument of Avalanche's ``SupervisedTemplate``; those that stand on a plugin take
the plugin's arguments too.
"""

import inspect
from collections.abc import Callable
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import JointTraining
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import DataLoader

from mas.strategies.plugins import (
    EWCPlugin,
    L2Plugin,
    LocalMASPlugin,
    MASPlugin,
    OnlineEWCPlugin,
    RandomPlugin,
    RWalkPlugin,
    SIPlugin,
)


def on_plugin(plugin: type[SupervisedPlugin[Any]]) -> Callable[..., None]:
    """Make the ``__init__`` of a strategy that is naive training with one plugin.

    It takes the plugin's arguments, by keyword, beside those of ``SupervisedTemplate``. Plugins
    of the user's run before the strategy's own.
    """
    options = inspect.signature(plugin).parameters

    def __init__(self: Any, *, plugins: Any = None, **arguments: Any) -> None:  # noqa: N807 - becomes one
        own = {name: arguments.pop(name) for name in options if name in arguments}
        SupervisedTemplate.__init__(self, plugins=[*(plugins or []), plugin(**own)], **arguments)

    # The merged signature is what help() shows, and what Avalanche checks arguments against.
    mine = inspect.signature(__init__)
    first, *rest = mine.parameters.values()
    own = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options.values()]
    __init__.__signature__ = mine.replace(parameters=[first, *own, *rest])  # type: ignore[attr-defined]
    return __init__


class Naive(SupervisedTemplate):
    """Train on one experience after another and protect nothing: the floor."""


class MAS(Naive):
    """Memory Aware Synapses: protect what the output is sensitive to; needs no labels (Aljundi 2018)."""

    __init__ = on_plugin(MASPlugin)


class LocalMAS(Naive):
    """Local MAS: importance from each layer's own output, in forward passes only (Aljundi 2018)."""

    __init__ = on_plugin(LocalMASPlugin)


class EWC(Naive):
    """Elastic Weight Consolidation: protect by Fisher information of past experiences (Kirkpatrick 2017)."""

    __init__ = on_plugin(EWCPlugin)


class OnlineEWC(Naive):
    """Online EWC: one running Fisher information and the latest anchor (Schwarz 2018)."""

    __init__ = on_plugin(OnlineEWCPlugin)


class SI(Naive):
    """Synaptic Intelligence: importance gathered along the path of training (Zenke 2017)."""

    __init__ = on_plugin(SIPlugin)


class RWalk(Naive):
    """Riemannian Walk: Fisher information and path integral together (Chaudhry 2018)."""

    __init__ = on_plugin(RWalkPlugin)


class L2(Naive):
    """L2 to the last anchor: all weights protected alike, a control."""

    __init__ = on_plugin(L2Plugin)


class Random(Naive):
    """Random importance: weights protected by lot, a control."""

    __init__ = on_plugin(RandomPlugin)


class Joint(JointTraining[Any, Any, Any]):
    """Train once on all experiences together, shuffled: the ceiling.

    Batches are drawn from all the data alike. (Avalanche's own joint training balances tasks
    within a batch, which repeats samples of small tasks.)
    """

    def __init__(self, *, criterion: Any = None, **arguments: Any):
        """Take the arguments of Avalanche's ``JointTraining``; the loss is cross-entropy by default."""
        super().__init__(criterion=criterion or nn.CrossEntropyLoss(), **arguments)

    def make_train_dataloader(
        self, num_workers: int = 0, shuffle: bool = True, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Load all experiences' data, shuffled together."""
        collate = getattr(self.adapted_dataset, "collate_fn", None)
        self.dataloader = DataLoader(
            self.adapted_dataset,
            self.train_mb_size,
            shuffle=shuffle,
            num_workers=num_workers,
            drop_last=drop_last,
            collate_fn=collate,
        )
