"""Several kernels as one C file: compilers take much less time for it than for a file of each."""

from __future__ import annotations

import re

_ATTRIBUTE = re.compile(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)")
_WORD = re.compile(r"\w+")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


class Unit:
    """Sources of kernels in one file: what they share once, the rest under names of its own.

    Args:
        storage: written before each kernel's function.
    """

    def __init__(self, storage: str = "") -> None:
        self.items: list[str] = []
        self.size = 0
        """Characters of all items."""
        self._storage = storage
        self._known: dict[str, str] = {}

    def add(self, source: str, name: str) -> None:
        """Add the source of one kernel, whose function ``kernel`` gets this name."""
        items = [(_defined(item), item) for item in _top_level(_COMMENT.sub(" ", source))]
        renamed = {"kernel": name}
        for own, item in items:
            if own not in self._known or own == "kernel":
                continue
            # What differs, and what looks the same and makes use of what differs.
            if self._known[own] != item or any(word in renamed for word in _WORD.findall(item)):
                renamed[own] = f"{own}_{name}"
        pattern = re.compile(r"\b(" + "|".join(map(re.escape, renamed)) + r")\b")
        for own, item in items:
            if own is None:  # an include
                if item not in self.items:
                    self._append(item)
                continue
            text = pattern.sub(lambda found: renamed[found[1]], item)
            if own == "kernel":
                text = f"{self._storage} {text}"
            if self._known.setdefault(renamed.get(own, own), text) is text:
                self._append(text)

    def _append(self, item: str) -> None:
        self.items.append(item)
        self.size += len(item)


def _top_level(source: str) -> list[str]:
    """Directives, types and functions one by one."""
    items: list[str] = []
    current: list[str] = []
    depth = 0
    for line in source.splitlines():
        if not line.strip():
            continue
        if depth == 0 and not current and line.lstrip().startswith("#"):
            items.append(line.strip())
            continue
        current.append(line)
        depth += line.count("{") - line.count("}")
        if depth == 0 and line.rstrip().endswith((";", "}")):
            items.append("\n".join(current))
            current = []
    return [*items, *(["\n".join(current)] if current else [])]


def _defined(item: str) -> str | None:
    """The name that an item defines; None for an include."""
    if item.startswith("#include"):
        return None
    if item.startswith("#define"):
        return item.split()[1].split("(", maxsplit=1)[0]
    plain = _ATTRIBUTE.sub(" ", item)
    if plain.lstrip().startswith("typedef"):
        return re.findall(r"\w+", plain)[-1]
    found = re.search(r"(\w+)\s*\(", plain)
    assert found is not None, item
    return found[1]
