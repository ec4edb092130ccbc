"""Where architectures are found by name, the package's own and those of other packages.

A package offers an architecture through the entry-point group ``pimlip_zoo.models``; the entry point names
the module (or the class) whose import runs :func:`register_model`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from typing import Any, TypeVar

from pimlip_zoo.errors import InputError, did_you_mean

__all__ = ["ENTRY_POINT_GROUP", "ModelInfo", "available_models", "get_model", "register_model"]

ENTRY_POINT_GROUP = "pimlip_zoo.models"
_BUILTIN = ("pimlip_zoo.models.nequip", "pimlip_zoo.models.allegro", "pimlip_zoo.models.mace")

ModelClass = TypeVar("ModelClass", bound=type)


@dataclass(frozen=True)
class ModelInfo:
    """An architecture and what is needed to build it."""

    name: str
    """The name that ``--model`` takes."""
    model: Callable[..., Any]
    """Called as ``model(config, species)``."""
    config: type
    """Frozen dataclass of the options, a ``ModelConfig``."""
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Named sets of options: small, medium, large."""

    @property
    def description(self) -> str:
        """First line of the class's docstring."""
        return (self.model.__doc__ or "").strip().split("\n", 1)[0]

    def configure(self, preset: str | None = None, **options: object) -> Any:
        """The config of a preset with single options replaced.

        Raises:
            InputError: for an unknown preset or option, with the nearest known names.
        """
        if preset is not None and preset not in self.presets:
            raise InputError(f"{self.name} has no preset {preset!r}", mend=did_you_mean(preset, self.presets))
        known = [f.name for f in fields(self.config)]
        for key in options:
            if key not in known:
                raise InputError(f"{self.name} has no option {key!r}", mend=did_you_mean(key, known))
        return self.config(**{**(self.presets[preset] if preset else {}), **options})


_models: dict[str, ModelInfo] = {}
_loaded: set[str] = set()


def register_model(
    name: str, *, config: type, presets: Mapping[str, Mapping[str, object]] | None = None
) -> Callable[[ModelClass], ModelClass]:
    """Class decorator that makes an architecture known under a name.

    Args:
        name: what users write after ``--model``.
        config: frozen dataclass of the options, derived from ``ModelConfig``.
        presets: named sets of options.

    Raises:
        InputError: when another class has the name already.
    """

    def register(cls: ModelClass) -> ModelClass:
        other = _models.get(name)
        if other is not None and _origin(other.model) != _origin(cls):
            raise InputError(
                f"two architectures are called {name!r}: {_origin(other.model)} and {_origin(cls)}",
                mend="register one of them under another name",
            )
        _models[name] = ModelInfo(name, cls, config, dict(presets or {}))
        return cls

    return register


def get_model(name: str) -> ModelInfo:
    """The architecture of that name.

    Raises:
        InputError: when there is none, with the nearest known names.
    """
    known = available_models()
    if name not in known:
        raise InputError(f"no architecture is called {name!r}", mend=did_you_mean(name, known))
    return known[name]


def available_models() -> dict[str, ModelInfo]:
    """All architectures by name: the package's own first, then those found through entry points."""
    for module in _BUILTIN:
        if module not in _loaded:
            importlib.import_module(module)
            _loaded.add(module)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.value not in _loaded:
            try:
                point.load()
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"the entry point {point.name!r} ({point.value}) of group {ENTRY_POINT_GROUP} "
                    f"does not load: {error}",
                    mend="mend or uninstall that package",
                ) from error
            _loaded.add(point.value)
    return dict(_models)


def _origin(model: object) -> str:
    return f"{getattr(model, '__module__', '?')}.{getattr(model, '__qualname__', '?')}"
