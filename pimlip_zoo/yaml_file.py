"""YAML of people, read as plain data whose size is that of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import read_text

_LONGEST = 1 << 18
_MOST_NODES, _DEEPEST = 100_000, 100
_BRACKETS = re.compile(r"[\[\]{}]")
_UNREADABLE = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What PyYAML raises: it takes most tags at their word, and nesting by recursion."""


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file; None when there is none.

    Raises:
        InputError: when there is no such file, it is no YAML, or larger than anything that a person writes.
    """
    return parse_yaml(read_text(path, most=_LONGEST), file=Path(path))


def parse_yaml(text: str, *, file: Path | None = None, key: str | None = None) -> Any:
    """The data that a YAML text stands for.

    Args:
        text: the YAML.
        file: where it is from, for messages.
        key: likewise.

    Raises:
        InputError: when it is no YAML, or stands for far more than it says, by references to references.

    >>> parse_yaml("a: [1, 2.5]")
    {'a': [1, 2.5]}
    """
    try:
        _check_nesting(text)
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader with a bound
    except InputError as error:
        raise InputError(error.message, file=file, key=key) from error
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"not valid YAML: {reason[:200]}", file=file, key=key) from error


def _check_nesting(text: str) -> None:
    """PyYAML needs a time that grows with the depth's square, and recursion."""
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            raise InputError(f"not valid YAML: more than {_DEEPEST} brackets are open")


class _Loader(yaml.SafeLoader):
    """Counts what aliases stand for before anything is made of them."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _count(node, {}) > _MOST_NODES:
            raise InputError(f"not usable YAML: its aliases stand for more than {_MOST_NODES} values")
        if node is not None:
            _check_keys(node, set())
        return node


def _check_keys(node: yaml.Node, known: set[int]) -> None:
    """Refuse a key that stands twice in a mapping: PyYAML takes the last without a word."""
    if id(node) in known:
        return
    known.add(id(node))
    keys: set[tuple[str, str]] = set()
    for child in node.value if isinstance(node.value, list) else []:
        if not isinstance(child, tuple):
            _check_keys(child, known)
            continue
        key, value = child
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in keys:
                raise InputError(f"line {key.start_mark.line + 1} gives {key.value[:80]!a} a second time")
            keys.add((key.tag, key.value))
        _check_keys(key, known)
        _check_keys(value, known)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of the tree that a graph of nodes stands for."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1  # what refers to itself has no end
        children = node.value if isinstance(node.value, list) else []
        parts = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, as after ``--set``; of an empty table there is nothing."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
