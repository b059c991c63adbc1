"""YAML that others wrote, read into plain values within bounds, with the line of everything for messages.

Rules:
- Mappings, lists and scalars; a tag that would make an object, a merge key and a second document are refused.
- A key stands once in its mapping and is text. Of scalars only null, booleans and plain whole numbers are converted:
  `3.10` stays the text it was written as, a date too.
- Bounded before anything is built: size, nesting, and nodes counted as often as aliases repeat them, so that a small
  file cannot become a large value.

    document = read_yaml(Path("environment.yml"))
    document.value["dependencies"], document.where("dependencies", 0)     # …, "environment.yml:3"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from publisher.errors import DocumentError

SIZE_LIMIT = 1 << 20
DEPTH_LIMIT = 32
NODE_LIMIT = 50_000
"""Far above what people and tools write: the largest MLmodel signature seen has some 3,000 columns in one scalar."""

Key = str | int


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A document's value and where its parts were written.

    Attributes:
        value: dicts, lists, str, int, bool and None.
        lines: line of each part, by the keys that lead to it.
    """

    name: str
    value: Any
    lines: Mapping[tuple[Key, ...], int]

    def where(self, *keys: Key) -> str:
        """`file:line` of a part, or of the nearest part around it."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.name}:{self.lines.get(keys, 1)}"

    def at(self, *keys: Key) -> YamlDocument:
        """The part at `keys` as a document of its own, with its lines in this one's file."""
        value = self.value
        for key in keys:
            value = value[key]
        lines = {path[len(keys) :]: line for path, line in self.lines.items() if path[: len(keys)] == keys}
        return YamlDocument(self.name, value, lines)


def read_yaml(path: Path, name: str | None = None) -> YamlDocument:
    """Read one document; `name` stands for the path in messages.

    Raises:
        DocumentError: unreadable, not YAML, or beyond the rules above; names file and line.
    """
    shown = name or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise DocumentError(f"{shown} cannot be read: {error.strerror}", where=shown) from error
    return parse_yaml(data, shown)


def parse_yaml(data: bytes, name: str) -> YamlDocument:
    """Like `read_yaml`, for bytes already read."""
    if len(data) > SIZE_LIMIT:
        raise DocumentError(f"{name} is larger than {SIZE_LIMIT >> 20} MiB", where=name)
    try:
        text = data.decode("utf-8-sig")
        _check_depth(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name} is not UTF-8 text: byte {error.start}", where=name) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise DocumentError(
            f"{where} is not valid YAML: {error.problem or error.context}", where=where
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise DocumentError(f"{name} is not valid YAML: {str(error).splitlines()[0]}", where=name) from error
    reader = _Reader(name)
    value = None if root is None else reader.read(root, ())
    return YamlDocument(name, value, reader.lines)


def _check_depth(text: str, name: str) -> None:
    """Before composing, which recurses: the parser itself does not."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_LIMIT:
            raise _refused(name, event, f"is nested deeper than {DEPTH_LIMIT}")


class _Reader:
    """Turns nodes into values; a node is counted every time an alias comes to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = NODE_LIMIT
        self.lines: dict[tuple[Key, ...], int] = {}

    def read(self, node: Any, keys: tuple[Key, ...]) -> Any:
        self._left -= 1
        if self._left < 0 or len(keys) > DEPTH_LIMIT:
            raise _refused(self._name, node, f"has more than {NODE_LIMIT} parts, counting repeated ones")
        self.lines[keys] = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.read(each, (*keys, index)) for index, each in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return dict(self._items(node, keys))
        raise _refused(self._name, node, f"has a tag that is not taken: {node.tag}")

    def _items(self, node: Any, keys: tuple[Key, ...]) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _TAG + "merge":
                raise _refused(self._name, key_node, "has a key that is not plain text")
            key = key_node.value
            if key in seen:
                raise _refused(self._name, key_node, f"has the key {key!r} twice")
            seen.add(key)
            value = self.read(value_node, (*keys, key))
            self.lines[*keys, key] = key_node.start_mark.line + 1
            yield key, value

    def _scalar(self, node: Any) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in {"true", "yes", "on"}
        if kind == "int" and len(text) < _LONG_INT and text.lstrip("+-").isascii() and _is_decimal(text):
            return int(text)
        if kind in _TEXT_KINDS:
            return text
        raise _refused(self._name, node, f"has a tag that is not taken: {node.tag}")


_TAG = "tag:yaml.org,2002:"
_TEXT_KINDS = frozenset({"str", "int", "float", "timestamp", "value"})
_LONG_INT = 20


def _is_decimal(text: str) -> bool:
    digits = text.lstrip("+-")
    return digits.isdigit() and (digits == "0" or not digits.startswith("0"))


def _refused(name: str, part: Any, what: str) -> DocumentError:
    where = f"{name}:{part.start_mark.line + 1}"
    return DocumentError(f"{where} {what}", where=where)
