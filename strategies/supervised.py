"""Ready strategies, used as Avalanche's own: pass a model and an optimizer, then call train and eval.

Each takes every argument of Avalanche's ``SupervisedTemplate``; a strategy that is built on a plugin
also takes the plugin's arguments. ``model``, ``optimizer`` and ``criterion`` may be passed by
position, all others by name. The file ``__init__.pyi`` spells these signatures out for editors and
type checkers; ``python -m tools.strategy_stub`` writes it.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any, Protocol, TypeVar

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import JointTraining
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
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

Criterion = Callable[..., Tensor]
StrategyClass = TypeVar("StrategyClass", bound=type)

_BY_POSITION = ("model", "optimizer", "criterion")


class Init(Protocol):
    """The ``__init__`` of a strategy, which takes arguments by name."""

    __signature__: Signature

    def __call__(self, strategy: SupervisedTemplate, /, **arguments: Any) -> None:
        """Initialise the strategy."""


def as_avalanche(strategy: StrategyClass) -> StrategyClass:
    """Let a strategy take its first arguments by position, and show all arguments in Avalanche's order.

    Every strategy of Avalanche begins with ``model, optimizer, criterion``. The next argument differs:
    in Avalanche's ``EWC`` it is the strength, in its ``Naive`` the batch size. So a fourth argument by
    position is an error.
    """
    init: Init = strategy.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def __init__(self: SupervisedTemplate, *by_position: Any, **arguments: Any) -> None:  # noqa: N807 - becomes one
        named = _name_positional(strategy.__name__, by_position, arguments)
        init(self, **named, **arguments)

    # Shown by help(), and used by Avalanche to check the names of arguments.
    __init__.__signature__ = _in_avalanches_order(strategy, init)  # type: ignore[attr-defined]
    strategy.__init__ = __init__  # type: ignore[misc]
    return strategy


def on_plugin(plugin: type[SupervisedPlugin]) -> Init:
    """Make the ``__init__`` of a strategy that is naive training with one plugin.

    It takes the plugin's arguments by name, beside those of ``SupervisedTemplate``. Plugins
    of the user run before the strategy's own.
    """
    options = inspect.signature(plugin).parameters

    def __init__(  # noqa: N807 - becomes one
        self: SupervisedTemplate, *, plugins: Sequence[SupervisedPlugin] | None = None, **arguments: Any
    ) -> None:
        given = {name: arguments.pop(name) for name in options if name in arguments}
        all_plugins = [*(plugins or []), plugin(**given)]
        SupervisedTemplate.__init__(self, plugins=all_plugins, **arguments)

    own = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options.values()]
    signature = inspect.signature(__init__)
    first, *rest = signature.parameters.values()
    init: Init = __init__  # type: ignore[assignment]
    init.__signature__ = signature.replace(parameters=[first, *own, *rest])
    return init


def _name_positional(strategy: str, by_position: Sequence[Any], by_name: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that were passed by position, by their names."""
    if len(by_position) > len(_BY_POSITION):
        raise TypeError(
            f"{strategy} got {len(by_position)} arguments by position; allowed: {', '.join(_BY_POSITION)}; "
            "give the others by name, such as train_mb_size=32"
        )
    named = dict(zip(_BY_POSITION, by_position, strict=False))
    for name in named:
        if name in by_name:
            raise TypeError(f"{strategy} got {name} by position and by name; give it once")
    return named


def _in_avalanches_order(strategy: type, init: Init) -> Signature:
    """Return the signature with the arguments of ``SupervisedTemplate`` first, then the strategy's own."""
    base = next(kind for kind in strategy.__mro__ if kind.__module__.startswith("avalanche."))
    first, *_, keywords = inspect.signature(SupervisedTemplate.__init__).parameters.values()
    common = _keyword_only(SupervisedTemplate)
    own = _keyword_only(init)
    in_force = common | _keyword_only(base) | own  # the last one's default is used
    ordered = [in_force[name] for name in common | own]
    return Signature([first, *ordered, keywords])


def _keyword_only(function: Callable[..., object]) -> dict[str, Parameter]:
    """Return the keyword-only parameters of a function by name."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is Parameter.KEYWORD_ONLY}


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
    """L2 to the last anchor: protect all weights equally, a control."""

    __init__ = on_plugin(L2Plugin)


@as_avalanche
class Random(Naive):
    """Random importance: protect weights at random, a control."""

    __init__ = on_plugin(RandomPlugin)


@as_avalanche
class Joint(JointTraining):
    """Train once on all experiences together, shuffled: the ceiling.

    Batches are drawn uniformly from all the data. (Avalanche's joint training balances tasks
    within a batch, which repeats samples of small tasks.)
    """

    def __init__(self, *, criterion: Criterion | None = None, **arguments: Any):
        """Take the arguments of Avalanche's ``JointTraining``; the loss is cross-entropy by default."""
        super().__init__(criterion=criterion or nn.CrossEntropyLoss(), **arguments)

    def make_train_dataloader(
        self, num_workers: int = 0, shuffle: bool = True, drop_last: bool = False, **kwargs: object
    ) -> None:
        """Make a loader of all experiences' data, shuffled together."""
        collate = getattr(self.adapted_dataset, "collate_fn", None)
        self.dataloader: DataLoader[Any] = DataLoader(
            self.adapted_dataset,
            self.train_mb_size,
            shuffle=shuffle,
            num_workers=num_workers,
            drop_last=drop_last,
            collate_fn=collate,
        )
