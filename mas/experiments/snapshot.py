"""The state of a strategy as plain data: all that its next step depends on, and nothing that its config already says.

A strategy is built anew from its settings, then its state is put into it. Functions and other parts
that come from the settings are left as they were built. Data sets, such as replay buffers, are kept as the places
of their samples in the stream, and parameters by their names.
"""

import importlib
import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from avalanche.benchmarks import CLExperience, CLStream
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.benchmarks.utils.flat_data import FlatData
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mas.benchmarks.images import Images, sources_of
from mas.experiments.avalanche_types import Benchmark, Strategy

Plain = Any  # numbers, text, tensors, and lists and dicts of them: what torch.load reads with weights_only=True

_OF_THE_LOOP = frozenset(
    {
        *("_criterion", "_eval_streams", "adapted_dataset", "current_eval_stream", "dataloader", "device", "evaluator"),
        *("experience", "loss", "mb_output", "mbatch", "model", "optimizer"),
    }
)
"""Attributes of a strategy that its settings give, or that Avalanche sets before each step or experience."""

_BUILT = (BaseModel, CLExperience, CLStream)  # from the settings or the stream
_LOADERS = (DataLoader, MultiDatasetDataLoader)

_MADE_ANEW = ("mas.", "avalanche.training.")  # modules whose objects may be made when a state is restored


class CannotCaptureError(Exception):
    """A part of a strategy whose state cannot be told, such as an iterator in the middle of its items."""


def capture(strategy: Strategy, benchmark: Benchmark, *, inside: bool) -> dict[str, Plain]:
    """Return the state of a strategy as plain data, for `restore`.

    Args:
        strategy: to be saved.
        benchmark: that it is trained on.
        inside: whether it is in the middle of an experience. Between experiences iterators may be left
            out: they are made anew when the next one begins.

    Raises:
        CannotCaptureError: a part has a state that cannot be told.
    """
    return _Capture(strategy, benchmark, inside).state()


def restore(strategy: Strategy, benchmark: Benchmark, state: Mapping[str, Plain]) -> None:
    """Put a state from `capture` into a strategy that was built from the same settings.

    Args:
        strategy: its objects are changed in place.
        benchmark: built from the same settings.
        state: is not changed.
    """
    _Restore(strategy, benchmark).put(state)


def random_state() -> dict[str, Plain]:
    """Return the state of every global random stream."""
    _, keys, *rest = np.random.get_state()
    version, own, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(own), gauss],
    }


def set_random_state(state: Mapping[str, Plain]) -> None:
    """Set every global random stream as `random_state` found it."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    version, own, gauss = state["python"]
    random.setstate((version, tuple(own), gauss))


class _Capture:
    def __init__(self, strategy: Strategy, benchmark: Benchmark, inside: bool):
        self.strategy = strategy
        self.inside = inside
        self.parameters = {id(p): name for name, p in strategy.model.named_parameters()}
        self.places = {id(images): number for number, images in enumerate(_images_of(benchmark))}
        self.seen: dict[int, int] = {}
        self.kept_alive: list[Any] = []  # an id is that of one object only while the object is there

    def state(self) -> dict[str, Plain]:
        own = {name: value for name, value in vars(self.strategy).items() if name not in _OF_THE_LOOP}
        return {
            "model": _module_state(self.strategy.model),
            "optimizer": self._optimizer(),
            "attributes": self._attributes(own),
        }

    def _optimizer(self) -> dict[str, Plain]:
        optimizer = self.strategy.optimizer
        groups = [[self.parameters[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        return {"groups": groups, "state": optimizer.state_dict()}

    def _attributes(self, own: Mapping[str, Any]) -> dict[str, Plain]:
        return {name: self._encode(value, name) for name, value in own.items()}

    def _encode(self, value: Any, name: str) -> Plain:
        """Return a value as a dict whose first key says how it is decoded."""
        if value is None or isinstance(value, bool | int | float | str):
            return {"plain": value}
        for kind, encode in self._ENCODERS.items():
            if isinstance(value, kind):
                return encode(self, value, name)
        return self._encode_object(value, name)

    def _encode_parameter(self, value: nn.Parameter, name: str) -> Plain:
        if id(value) not in self.parameters:
            raise CannotCaptureError(f"{name} is a parameter that the model does not have")
        return {"parameter": self.parameters[id(value)]}

    def _encode_tensor(self, value: Tensor, name: str) -> Plain:
        return {"tensor": value.detach().clone()}

    def _encode_array(self, value: np.ndarray, name: str) -> Plain:
        return {"array": torch.from_numpy(value.copy())}

    def _encode_generator(self, value: torch.Generator, name: str) -> Plain:
        return {"generator": value.get_state()}

    def _encode_sequence(self, value: list[Any] | tuple[Any, ...] | set[Any], name: str) -> Plain:
        items = [self._encode(item, name) for item in value]
        if hasattr(value, "_fields"):
            return {"named_tuple": items, "class": _class_name(value)}
        return {type(value).__name__: items}

    def _encode_dict(self, value: dict[Any, Any], name: str) -> Plain:
        return {"dict": [[self._encode(key, name), self._encode(item, name)] for key, item in value.items()]}

    def _encode_module(self, value: nn.Module, name: str) -> Plain:
        return {"module": _module_state(value)}

    def _encode_dataset(self, value: AvalancheDataset, name: str) -> Plain:
        return {"dataset": self._dataset(value, name)}

    _ENCODERS: ClassVar[dict[Any, Callable[..., Plain]]] = {
        nn.Parameter: _encode_parameter,
        Tensor: _encode_tensor,
        np.ndarray: _encode_array,
        torch.Generator: _encode_generator,
        (list, tuple, set): _encode_sequence,
        dict: _encode_dict,
        nn.Module: _encode_module,
        AvalancheDataset: _encode_dataset,
    }

    def _encode_object(self, value: Any, name: str) -> Plain:
        if id(value) in self.seen:
            return {"seen": self.seen[id(value)]}
        self.seen[id(value)] = len(self.seen)
        self.kept_alive.append(value)
        if isinstance(value, partial):
            return {"object": self._attributes(value.keywords), "class": _class_name(value)}
        if getattr(value, "is_not_state", False) or isinstance(value, _BUILT):
            return {"built": True}
        if hasattr(value, "__next__") or isinstance(value, _LOADERS):
            if self.inside:
                raise CannotCaptureError(f"{name} is a {type(value).__name__} in the middle of its items")
            return {"built": True}
        if hasattr(value, "__dict__") and not isinstance(value, type) and not _is_function(value):
            return {"object": self._attributes(vars(value)), "class": _class_name(value)}
        return {"built": True}

    def _dataset(self, dataset: AvalancheDataset, name: str) -> dict[str, Plain]:
        try:
            samples = sources_of(dataset)
        except ValueError as error:
            raise CannotCaptureError(f"{name}: {error}") from None
        if any(id(images) not in self.places for images, _ in samples):
            raise CannotCaptureError(f"{name} has samples that the stream does not have")
        extra = [a for a in dataset._data_attributes.values() if a.name not in ("targets", "targets_task_labels")]
        return {
            "source": torch.tensor([self.places[id(images)] for images, _ in samples], dtype=torch.int64),
            "position": torch.tensor([position for _, position in samples], dtype=torch.int64),
            "attributes": [[a.name, a.use_in_getitem, torch.stack([torch.as_tensor(v) for v in a])] for a in extra],
            "group": dataset._flat_data._transform_groups.current_group if len(dataset) else "train",
        }


class _Restore:
    def __init__(self, strategy: Strategy, benchmark: Benchmark):
        self.strategy = strategy
        self.datasets = [experience.dataset for experience in benchmark.train_stream]
        self.made: list[Any] = []

    def put(self, state: Mapping[str, Plain]) -> None:
        _load_module(self.strategy.model, state["model"])
        self.parameters = dict(self.strategy.model.named_parameters())
        self._put_optimizer(state["optimizer"])
        self._put_attributes(vars(self.strategy), state["attributes"])
        for own in self.made:
            if hasattr(own, "on_restore"):
                own.on_restore()

    def _put_optimizer(self, saved: Mapping[str, Plain]) -> None:
        optimizer = self.strategy.optimizer
        optimizer.state.clear()
        for group, names in zip(optimizer.param_groups, saved["groups"], strict=True):
            group["params"] = [self.parameters[name] for name in names]
        optimizer.load_state_dict(saved["state"])

    def _put_attributes(self, own: Any, saved: Mapping[str, Plain]) -> None:
        for name, value in saved.items():
            own[name] = self._decode(own.get(name), value, name)

    def _decode(self, built: Any, saved: Mapping[str, Plain], name: str) -> Any:
        """Return the value that was saved; ``built`` is what stands there, and is changed in place where it can be."""
        kind, *_ = saved
        decode = getattr(self, f"_decode_{kind}")
        return decode(built, saved, name)

    def _decode_plain(self, built: Any, saved: Mapping[str, Plain], name: str) -> Any:
        return saved["plain"]

    def _decode_tensor(self, built: Any, saved: Mapping[str, Plain], name: str) -> Tensor:
        tensor: Tensor = saved["tensor"]
        return tensor.clone()

    def _decode_array(self, built: Any, saved: Mapping[str, Plain], name: str) -> np.ndarray:
        array: np.ndarray = saved["array"].numpy()
        return array.copy()

    def _decode_parameter(self, built: Any, saved: Mapping[str, Plain], name: str) -> nn.Parameter:
        return self.parameters[saved["parameter"]]

    def _decode_generator(self, built: Any, saved: Mapping[str, Plain], name: str) -> torch.Generator:
        generator = built if isinstance(built, torch.Generator) else torch.Generator()
        generator.set_state(saved["generator"])
        return generator

    def _decode_named_tuple(self, built: Any, saved: Mapping[str, Plain], name: str) -> Any:
        items = [self._decode(None, item, name) for item in saved["named_tuple"]]
        return _find_class(saved["class"], name)(*items)

    def _decode_list(self, built: Any, saved: Mapping[str, Plain], name: str) -> list[Any]:
        found: list[Any] = built if isinstance(built, list) else []
        found[:] = self._items(found, saved["list"], name)
        return found

    def _decode_tuple(self, built: Any, saved: Mapping[str, Plain], name: str) -> tuple[Any, ...]:
        before = built if isinstance(built, tuple) else ()
        return tuple(self._items(before, saved["tuple"], name))

    def _decode_set(self, built: Any, saved: Mapping[str, Plain], name: str) -> set[Any]:
        return set(self._items((), saved["set"], name))

    def _items(self, built: Sequence[Any], saved: Sequence[Plain], name: str) -> list[Any]:
        missing = [None] * (len(saved) - len(built))
        return [self._decode(old, item, name) for old, item in zip([*built, *missing], saved, strict=False)]

    def _decode_dict(self, built: Any, saved: Mapping[str, Plain], name: str) -> dict[Any, Any]:
        found: dict[Any, Any] = built if isinstance(built, dict) else {}  # it may be a defaultdict
        items = {}
        for key_saved, item in saved["dict"]:
            key = self._decode(None, key_saved, name)
            items[key] = self._decode(found.get(key), item, name)
        found.clear()
        found.update(items)
        return found

    def _decode_module(self, built: Any, saved: Mapping[str, Plain], name: str) -> nn.Module:
        module = built if isinstance(built, nn.Module) else deepcopy(self.strategy.model)
        _load_module(module, saved["module"])
        return module

    def _decode_seen(self, built: Any, saved: Mapping[str, Plain], name: str) -> Any:
        return self.made[saved["seen"]]

    def _decode_built(self, built: Any, saved: Mapping[str, Plain], name: str) -> Any:
        self.made.append(built)
        return built

    def _decode_object(self, built: Any, saved: Mapping[str, Plain], name: str) -> Any:
        is_same = _class_name(built) == saved["class"]
        found = built if is_same else _empty(_find_class(saved["class"], name))
        self.made.append(found)
        own = found.keywords if isinstance(found, partial) else vars(found)
        self._put_attributes(own, saved["object"])
        return found

    def _decode_dataset(self, built: Any, saved: Mapping[str, Plain], name: str) -> AvalancheDataset:
        samples = saved["dataset"]
        source, position = samples["source"], samples["position"]
        if not len(source):
            return concat_datasets([])
        used = source.unique().tolist()
        sizes = [len(self.datasets[number]) for number in used]
        starts = dict(zip(used, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        offsets = torch.tensor([starts[number] for number in source.tolist()])
        whole = concat_datasets([self.datasets[number] for number in used])
        dataset = whole.subset((position + offsets).tolist())
        for key, in_items, values in samples["attributes"]:
            rows = FlatData([list(values)])
            attribute = TensorDataAttribute(rows, name=key, use_in_getitem=in_items)
            dataset = dataset.update_data_attribute(key, attribute)
        return dataset.with_transforms(samples["group"])


def _images_of(benchmark: Benchmark) -> list[Images]:
    """Return the images of each training experience; raise CannotCaptureError if they are not in memory."""
    found = []
    for experience in benchmark.train_stream:
        parts = getattr(experience.dataset._flat_data, "_datasets", [])
        if len(parts) != 1 or not isinstance(parts[0], Images):
            raise CannotCaptureError("the stream's data are not Images of mas.benchmarks")
        found.append(parts[0])
    return found


def _module_state(module: nn.Module) -> dict[str, Plain]:
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        "training": {name: own.training for name, own in module.named_modules()},
        "frozen": [name for name, parameter in module.named_parameters() if not parameter.requires_grad],
    }


def _load_module(module: nn.Module, saved: Mapping[str, Plain]) -> None:
    """Set the tensors of a module in place; one of another shape, such as of a head that has grown, is replaced."""
    own = module.state_dict()
    for name, tensor in saved["tensors"].items():
        if name in own and own[name].shape != tensor.shape:
            _replace_tensor(module, name, tensor)
    module.load_state_dict(saved["tensors"])
    for name, part in module.named_modules():
        part.training = saved["training"][name]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in saved["frozen"])


def _replace_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, own = name.rpartition(".")
    owner = module.get_submodule(parent)
    is_parameter = own in owner._parameters
    setattr(owner, own, nn.Parameter(tensor.clone()) if is_parameter else tensor.clone())


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _empty(kind: Any) -> Any:
    return kind.__new__(kind)


def _find_class(class_name: str, name: str) -> Any:
    """Return a class of this library or of Avalanche's by its name."""
    module, _, qualified = class_name.partition(":")
    if not f"{module}.".startswith(_MADE_ANEW):
        raise ValueError(f"{name}: a {class_name} cannot be restored where none was built")
    found: Any = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


def _is_function(value: Any) -> bool:
    return type(value).__name__ in ("function", "method", "builtin_function_or_method", "module")
