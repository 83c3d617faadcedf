"""What pydantic found wrong with a config, in the words of this project: where, what was found, what is allowed."""

import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mas.experiments.config.plain_yaml import quoted, shortened
from mas.experiments.config.search import Search
from mas.experiments.config.yaml_source import Key, Source, nearest
from mas.experiments.networks import torchvision_models
from mas.experiments.options import tag_of

MAX_ERRORS = 100
"""How many errors of pydantic are told; a list of 10,000 wrong items has as many."""


def complaints(
    source: Source,
    model: type[BaseModel],
    data: dict[str, Any],
    error: ValidationError,
    searches: Sequence[Search] = (),
    number: int = 0,
) -> list[str]:
    """Return one line for each value that is wrong, also where pydantic tried several types.

    Args:
        source: where the data came from.
        model: that the data were held against.
        data: with one value in place of each search.
        error: what pydantic found.
        searches: places at which the file says ``{select: [...]}``.
        number: which value of their lists stands there.
    """
    found: dict[Key, str] = {}
    allowed: dict[Key, list[str]] = {}
    errors = error.errors()
    for item in errors[:MAX_ERRORS]:
        key = _place(item, model, data)
        found[key], may_be = _complaint(key, item, model, data)
        allowed.setdefault(key, []).append(may_be)
    lines = []
    for key in _innermost(list(found)):
        where = source.where(_in_file(key, searches, number))
        lines.append(f"{where}: {found[key]}: {' or '.join(dict.fromkeys(allowed[key]))}")
    if len(errors) > MAX_ERRORS:
        lines.append(f"{source.where(())}: and {len(errors) - MAX_ERRORS:,} more mistakes; mend these first")
    return lines


def _innermost(keys: Sequence[Key]) -> list[Key]:
    """Leave out a value in which another is wrong: the inner one says more."""
    outer = {key[:n] for key in keys for n in range(len(key))}
    return [key for key in keys if key not in outer]


def _in_file(key: Key, searches: Sequence[Search], number: int) -> Key:
    for search in searches:
        if key[: len(search.place)] == search.place:
            return (*search.place, "select", search.key(number), *key[len(search.place) :])
    return key


def _place(item: Any, model: type[BaseModel], data: Any) -> Key:
    """Return the key of an error: without the names of pydantic's own types, with the key that tells models apart."""
    key: list[str | int] = []
    here = data
    *outer, last = item["loc"] or ("",)
    for part in [*outer, last]:
        inside = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        if inside:
            here = here[part]
        if inside or (part is last and item["type"] == "missing"):
            key.append(part)
    if item["type"].startswith("union_tag"):
        tags = _tags(models_at(model, tuple(key), data))
        key.append(next(iter(tags))[0])
    return tuple(key)


def _complaint(key: Key, item: Any, model: type[BaseModel], data: Any) -> tuple[str, str]:
    """Return what was found with what to do about it, and what is allowed there."""
    kind = item["type"]
    known = _known(key, item, model, data)
    if kind == "extra_forbidden":
        return f"unknown key{nearest(shortened(str(key[-1])), known)}; allowed", ", ".join(known)
    if kind in ("missing", "union_tag_not_found"):
        if known:
            return "missing; allowed", ", ".join(known)
        return "missing; add it", _EXAMPLES.get(str(key[-1]), "it has no default")
    return _wrong_value(key, item, known, model, data)


def _wrong_value(key: Key, item: Any, known: Sequence[str], model: type[BaseModel], data: Any) -> tuple[str, str]:
    """Return the same as `_complaint`, of a value that is there and wrong."""
    kind = item["type"]
    if kind == "invalid_key":
        return f"found the key {quoted(item['input'])}; allowed", "keys that are text"
    if kind == "value_error" and isinstance(item["input"], dict):  # the message is a sentence
        return "does not fit", item["msg"].removeprefix("Value error, ")
    value = item.get("ctx", {}).get("tag", item["input"])
    meant = _meant(value, known) if isinstance(value, str) else ""
    found = f"found {quoted(value)}{meant}; allowed"
    if known and key[-1] != "select":
        return found, ", ".join(known)
    return found, _allowed_text(key, item, model, data)


def _meant(name: str, known: Sequence[str]) -> str:
    """Return ``, did you mean ...?``, also for names that are known elsewhere."""
    name = shortened(name)
    if name.casefold() == "gpu" and "cuda" in known:
        return ", did you mean 'cuda'?"
    if "torchvision" in known and name.casefold() in torchvision_models():
        return f", did you mean {{name: torchvision, model: {name.casefold()}}}?"
    return nearest(name, known)


def _allowed_text(key: Key, item: Any, model: type[BaseModel], data: Any) -> str:
    """Return what may stand at a place, in words that a user of YAML knows."""
    if key[-1] == "select":
        return _EXAMPLES["select"]
    models = models_at(model, key, data, chosen=False)
    if models and item["type"] in _NOT_A_MAP:
        tags = _tags(models)
        if not tags:
            return f"a map with {', '.join(models[0].model_fields)}"
        first_key, _ = next(iter(tags))
        return f"a map, such as {{{first_key}: ...}}"
    message = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return _ALLOWED_TEXT.get(item["type"], message)


def _known(key: Key, item: Any, model: type[BaseModel], data: Any) -> list[str]:
    """Return the names that may stand where this error is, if they can be listed."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return [name for own in models_at(model, key[:-1], data) for name in own.model_fields]
    if kind.startswith("union_tag"):
        return [value for _, value in _tags(models_at(model, key[:-1], data, chosen=False))]
    if kind == "value_error" and isinstance(value := item["input"], str) and value:
        names = item["msg"].removeprefix("Value error, ").split(", ")
        return names if all(re.fullmatch(r"[\w:.-]+", name) for name in names) else []
    if kind == "literal_error":
        return [part.strip("' ") for part in item["ctx"]["expected"].replace(" or ", ",").split(",")]
    return []


def models_at(model: type[BaseModel], key: Key, data: Any, chosen: bool = True) -> list[type[BaseModel]]:
    """Return the models that may stand at a place of a config, found by walking the fields of ``model``.

    Args:
        model: of the whole config.
        key: the place.
        data: the config as plain data.
        chosen: whether only the model that the data there choose by their name is wanted.
    """
    models = [model]
    for depth, part in enumerate(key):
        inner = [found for own in models for found in _below(own, part)]
        last = depth == len(key) - 1
        data = _at(data, part)
        models = inner if last and not chosen else _fitting(inner, data)
    return models


def _below(model: Any, part: str | int) -> Iterator[Any]:
    """Yield the models, or lists of models, that stand under a key."""
    if isinstance(part, int):
        yield from _inside(get_args(model)[0]) if get_origin(model) is list else ()
    elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
        yield from _inside(model.model_fields[part].annotation)


def _inside(annotation: Any) -> Iterator[Any]:
    """Yield the models and lists that an annotation is made of."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _inside(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _inside(part)
    elif origin is list or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        yield annotation


def _fitting(models: list[Any], data: Any) -> list[Any]:
    """Return the models that the data choose by their tag; all of them, or that of the default, if they choose none."""
    if not isinstance(data, dict):
        return models
    tagged = [m for m in models if get_origin(m) is not list and (tag := tag_of(m)) and data.get(tag[0]) == tag[1]]
    if tagged or len(models) <= 1:
        return tagged or models
    untagged = [m for m in models if get_origin(m) is list or not tag_of(m)]
    return untagged or models[:1]  # the tag is left out: the first is the default


def _tags(models: Sequence[Any]) -> dict[tuple[str, str], None]:
    tags = [tag_of(model) for model in models if get_origin(model) is not list]
    return dict.fromkeys(tag for tag in tags if tag)


def _at(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None


_EXAMPLES = {  # of keys that a config must have
    "benchmark": "a map such as {dataset: digits}",
    "deficit": "a map such as {name: blur}",
    "lengths": "a list of epochs such as [20, 40]",
    "select": "a list of values; for lam also continual",
    "strategies": "a list such as [{name: naive}, {name: mas, lam: 1}]",
}
_NOT_A_MAP = ("model_type", "model_attributes_type", "dict_type")
_ALLOWED_TEXT = {
    **dict.fromkeys(_NOT_A_MAP, "a map, such as {name: ...}"),
    "too_short": "a longer list",
    "string_pattern_mismatch": "letters, digits and _ . + - (it names files)",
    "string_too_long": "at most 100 letters (it names files)",
}
