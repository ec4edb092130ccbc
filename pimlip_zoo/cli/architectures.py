"""What ``pimlip-zoo models`` says of architectures: options, presets, and how many parameters they have.

Counting builds every model, which takes torch and seconds. What is said of the package's own architectures is kept in
the package; a test compares it with the architectures, and ``python -m pimlip_zoo.cli.architectures`` writes it anew.
What is said of those of other packages is kept in the cache until one of the packages changes.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import logging
import textwrap
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

from pimlip_zoo import __version__
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import read_text, write_text
from pimlip_zoo.registry import ENTRY_POINT_GROUP, MODELS, available_models

KEPT = Path(__file__).with_name("architectures.json")
"""What is said of the package's own architectures."""


def all_described() -> dict[str, dict[str, Any]]:
    """What is known of every architecture, by name: the package's own first."""
    own: dict[str, dict[str, Any]] = json.loads(read_text(KEPT))
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    return own | _others(points, own) if points else own


def own_described() -> dict[str, dict[str, Any]]:
    """The same of the package's own architectures, from the architectures themselves."""
    found = available_models().items()
    return {name: describe(info) for name, info in found if info.model.__module__ in MODELS.builtin}


def describe(info: Any) -> dict[str, Any]:
    """What there is to say of one architecture.

    Args:
        info: a :class:`~pimlip_zoo.registry.ModelInfo`.
    """
    presets = {}
    for preset in info.presets:
        presets[preset] = {**info.presets[preset], "parameters": _count(info, preset)}
    return {
        "name": info.name,
        "description": info.description,
        "presets": presets,
        "parameters": None if info.presets else _count(info, None),
        "options": {
            field.name: {
                "type": str(field.type),
                "default": _default(field),
                "help": _help(info.config, field.name),
            }
            for field in dataclasses.fields(info.config)
        },
    }


def _others(points: Iterable[EntryPoint], own: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What is known of the architectures that other packages offer, from the cache where it is there."""
    file = _kept_in(points)
    try:
        return dict(json.loads(read_text(file)))
    except (OSError, ValueError, InputError):
        pass
    from pimlip_zoo.cli.console import console

    names = ", ".join(point.name for point in points)
    console(stderr=True).print(f"counting the parameters of {names}, once ...", markup=False)
    text = json.dumps({name: describe(info) for name, info in available_models().items() if name not in own})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except (OSError, ValueError) as error:  # a cache that cannot be written costs time and nothing else
        logging.getLogger("pimlip_zoo").debug("%s", error)
    return dict(json.loads(text))


def _kept_in(points: Iterable[EntryPoint]) -> Path:
    """The file, named by a hash of all that the descriptions depend on."""
    from pimlip_zoo.weak_labels.pool import cache_folder

    digest = hashlib.sha256(__version__.encode())
    package = Path(__file__).parents[1]
    sources = (
        *package.glob("models/*.py"),
        *package.glob("nn/*.py"),
        Path(__file__),
        package / "registry.py",
    )
    for path in sorted(sources):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    for point in points:
        version = "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        digest.update(f"{point.name} {point.value} {version}".encode())
    return cache_folder() / f"models-{digest.hexdigest()[:20]}.json"


def _count(info: Any, preset: str | None) -> int:
    model = info.model(info.configure(preset, avg_num_neighbors=10.0), ("H", "C", "N", "O"))
    return sum(parameter.numel() for parameter in model.parameters())


def _default(field: Any) -> Any:
    return None if field.default is dataclasses.MISSING else field.default


def _help(config: type, name: str) -> str:
    """The string below a field of a dataclass, from its source."""
    for cls in config.__mro__[:-1]:
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):
            continue
        for node, following in pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and getattr(node.target, "id", None) == name
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                return " ".join(str(following.value.value).split())
    return ""


if __name__ == "__main__":
    write_text(KEPT, json.dumps(own_described(), indent=1) + "\n")
