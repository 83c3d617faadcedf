"""Text becomes plain data, within bounds: neither a bomb nor a typing error takes much time or memory."""

import re
from typing import Any

import yaml

Place = tuple[str | int, ...]

MAX_CHARACTERS = 1_000_000
"""The longest text that is read; the longest config of this project has 2,000 characters."""

MAX_VALUES = 100_000
"""The most keys and values in a config. What an alias repeats is counted each time."""

MAX_DEPTH = 50
"""How deep maps and lists may stand within each other."""

MAX_DIGITS = 100
"""The longest number, in characters."""

_TAG = "tag:yaml.org,2002:"


def read_yaml(text: str) -> tuple[Any, dict[Place, int]]:
    """Return the plain data of a text, and the line of each key.

    Args:
        text: with at most `MAX_CHARACTERS` characters.

    Raises:
        yaml.YAMLError: it is not plain YAML, a key stands twice, or the text goes beyond the bounds of this
            module.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"found {len(text):,} characters; give at most {MAX_CHARACTERS:,}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        if node is not None:
            _note_lines(lines, node, ())
        data = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    return data, lines


def check_size(data: Any) -> None:
    """Raise ValueError if plain data hold more than `MAX_VALUES` values, or hold them deeper than `MAX_DEPTH`."""
    waiting = [(data, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if seen > MAX_VALUES:
            raise ValueError(_TOO_MANY)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting.extend((item, depth + 1) for item in inner)


_TOO_DEEP = f"found maps or lists more than {MAX_DEPTH} deep; write it flatter"
_TOO_MANY = f"found more than {MAX_VALUES:,} values, those that aliases repeat among them; give fewer"


class LimitError(yaml.MarkedYAMLError):
    """What goes beyond plain YAML, and where."""

    def __init__(self, problem: str, node: yaml.Node | yaml.Event):
        mark: Any = node.start_mark  # PyYAML has two kinds, alike
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """Plain YAML within bounds, which also knows 1e-3 for a number, as YAML 1.2 and everybody else does."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0
        self.values = 0
        self.sizes: dict[str, int] = {}  # by anchor, once its value is complete

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; raise an error as soon as there are too many, or it stands too deep."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if event.anchor not in self.sizes:
                raise LimitError("holds an anchor that contains itself; write it out", event)
            self._count(self.sizes[event.anchor], event)
            return node
        before = self.values
        self._count(1, event)
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise LimitError(_TOO_DEEP, event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if event.anchor:
            self.sizes[event.anchor] = self.values - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; a scalar that is not what its tag says is one error, whatever it raises."""
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        _check_number(node)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # noqa: BLE001 - PyYAML's own: of the wrong type, the wrong length, without a match
            expected = node.tag.removeprefix(_TAG)
            raise LimitError(f"found {shortened(node.value)!r}, which is no {expected}", node) from None

    def _count(self, number: int, event: yaml.Event) -> None:
        self.values += number
        if self.values > MAX_VALUES:
            raise LimitError(_TOO_MANY, event)


def _check_number(node: yaml.ScalarNode) -> None:
    is_number = node.tag in (f"{_TAG}int", f"{_TAG}float")
    if is_number and len(node.value) > MAX_DIGITS:
        raise LimitError(f"found a number of {len(node.value):,} characters; give at most {MAX_DIGITS}", node)


def _refuse_date(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    found = node.value if isinstance(node, yaml.ScalarNode) else "a date"
    raise LimitError(f"found {shortened(found)}, which YAML reads as a date; quote it: '{shortened(found)}'", node)


def _refuse_tag(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    raise LimitError(f"found the tag !!{node.tag.removeprefix(_TAG)}", node)


_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(f"{_TAG}timestamp", _refuse_date)
for _name in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(f"{_TAG}{_name}", _refuse_tag)


def _note_lines(lines: dict[Place, int], node: yaml.Node, place: Place) -> None:
    """Enter the line of each key and item below a node."""
    if len(place) > MAX_DEPTH:  # by aliases: each stands higher up
        raise LimitError(_TOO_DEEP, node)
    for part, marked, value in _parts(node):
        here = (*place, part)
        line = marked.start_mark.line + 1
        if here in lines and isinstance(node, yaml.MappingNode):
            raise LimitError(f"{part} stands twice, first in line {lines[here]}", marked)
        lines[here] = line
        _note_lines(lines, value, here)


def _parts(node: yaml.Node) -> list[tuple[str | int, yaml.Node, yaml.Node]]:
    """Return the key, the node that marks its line and the value of each entry of a map, or item of a list."""
    if isinstance(node, yaml.MappingNode):
        return [(_name_of(name), name, value) for name, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(number, item, item) for number, item in enumerate(node.value)]
    return []


def _name_of(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise LimitError("found a list or a map as a key; give text", node)
    return str(node.value)


def shortened(text: str, length: int = 80) -> str:
    """Return a text, or its beginning with its length.

    >>> shortened("9" * 5000, 5)
    '99999... (5,000 characters)'
    """
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def quoted(value: Any) -> str:
    """Return a value as it is told in a message: at most 200 characters of it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        text = f"a number of {value.bit_length():,} bits"
    return shortened(text, 200)
