"""Ready strategies, used as Avalanche's own: give a model and an optimizer, then train and eval.

Each takes every argument of Avalanche's ``SupervisedTemplate``; those that stand on a plugin take
the plugin's arguments too. ``model``, ``optimizer`` and ``criterion`` may be given by position, all
others by name.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

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

Strategy = TypeVar("Strategy", bound=type)

_BY_POSITION = ("model", "optimizer", "criterion")


def as_avalanche(strategy: Strategy) -> Strategy:
    """Let a strategy take its first arguments by position, and show all of them in Avalanche's order.

    Every strategy of Avalanche begins with ``model, optimizer, criterion``. What follows differs:
    the fourth argument of its ``EWC`` is a strength, that of its ``Naive`` a batch size. So a fourth
    argument by position is an error, not a guess.
    """
    by_name: Callable[..., None] = strategy.__init__  # type: ignore[misc]

    @functools.wraps(by_name)
    def __init__(self: Any, *args: Any, **arguments: Any) -> None:  # noqa: N807 - becomes one
        if len(args) > len(_BY_POSITION):
            raise TypeError(
                f"{strategy.__name__} got {len(args)} arguments by position; allowed: {', '.join(_BY_POSITION)}; "
                "give the others by name, such as train_mb_size=32"
            )
        given = dict(zip(_BY_POSITION, args, strict=False))
        if twice := given.keys() & arguments.keys():
            raise TypeError(f"{strategy.__name__} got {twice.pop()} by position and by name; give it once")
        by_name(self, **given, **arguments)

    # This is what help() shows, and what Avalanche checks arguments against.
    __init__.__signature__ = _in_avalanches_order(strategy, by_name)  # type: ignore[attr-defined]
    strategy.__init__ = __init__  # type: ignore[misc]
    return strategy


def _in_avalanches_order(strategy: type, init: Callable[..., None]) -> inspect.Signature:
    """Return the signature with the arguments of ``SupervisedTemplate`` first, then the strategy's own."""
    base = next(kind for kind in strategy.__mro__ if kind.__module__.startswith("avalanche."))
    first, *_, rest = inspect.signature(SupervisedTemplate.__init__).parameters.values()
    common, own = _by_name(SupervisedTemplate), _by_name(init)
    meant = common | _by_name(base) | own  # of several defaults, the last one is in force
    return inspect.Signature([first, *(meant[name] for name in common | own), rest])


def _by_name(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def on_plugin(plugin: type[SupervisedPlugin[Any]]) -> Callable[..., None]:
    """Make the ``__init__`` of a strategy that is naive training with one plugin.

    It takes the plugin's arguments, by keyword, beside those of ``SupervisedTemplate``. Plugins
    of the user's run before the strategy's own.
    """
    options = inspect.signature(plugin).parameters

    def __init__(self: Any, *, plugins: Any = None, **arguments: Any) -> None:  # noqa: N807 - becomes one
        own = {name: arguments.pop(name) for name in options if name in arguments}
        SupervisedTemplate.__init__(self, plugins=[*(plugins or []), plugin(**own)], **arguments)

    mine = inspect.signature(__init__)
    first, *rest = mine.parameters.values()
    own = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options.values()]
    __init__.__signature__ = mine.replace(parameters=[first, *own, *rest])  # type: ignore[attr-defined]
    return __init__


@as_avalanche
class Naive(SupervisedTemplate):
    """Train on one experience after another and protect nothing: the floor."""


@as_avalanche
class MAS(Naive):
    """Memory Aware Synapses: protect what the output is sensitive to; needs no labels (Aljundi 2018)."""

    __init__ = on_plugin(MASPlugin)


@as_avalanche
class LocalMAS(Naive):
    """Local MAS: importance from each layer's own output, in forward passes only (Aljundi 2018)."""

    __init__ = on_plugin(LocalMASPlugin)


@as_avalanche
class EWC(Naive):
    """Elastic Weight Consolidation: protect by Fisher information of past experiences (Kirkpatrick 2017)."""

    __init__ = on_plugin(EWCPlugin)


@as_avalanche
class OnlineEWC(Naive):
    """Online EWC: one running Fisher information and the latest anchor (Schwarz 2018)."""

    __init__ = on_plugin(OnlineEWCPlugin)


@as_avalanche
class SI(Naive):
    """Synaptic Intelligence: importance gathered along the path of training (Zenke 2017)."""

    __init__ = on_plugin(SIPlugin)


@as_avalanche
class RWalk(Naive):
    """Riemannian Walk: Fisher information and path integral together (Chaudhry 2018)."""

    __init__ = on_plugin(RWalkPlugin)


@as_avalanche
class L2(Naive):
    """L2 to the last anchor: all weights protected alike, a control."""

    __init__ = on_plugin(L2Plugin)


@as_avalanche
class Random(Naive):
    """Random importance: weights protected by lot, a control."""

    __init__ = on_plugin(RandomPlugin)


@as_avalanche
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
