"""Where things are found by name, the package's own and those of other packages.

A package offers something through an entry point, which names the module (or the class, or the function) whose import
registers it. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pimlip_zoo.errors import InputError, did_you_mean

ENTRY_POINT_GROUP = "pimlip_zoo.models"
BASELINE = "it is a baseline of the study now: pip install benchmarks/weak/baselines"
"""Where something is that the study found of no use."""


def first_line(documented: object) -> str:
    """Of the docstring of a class or function: what it is."""
    return (documented.__doc__ or "").strip().split("\n", 1)[0]


@dataclass(frozen=True)
class Registered:
    """A thing that is made from options, and what is known of it."""

    name: str
    """What users write."""
    make: Callable[..., Any]
    """Called with the options."""
    options: type[Any]
    """The type of the options."""

    @property
    def description(self) -> str:
        """First line of the docstring: what it is."""
        return first_line(self.make)


T = TypeVar("T")
Source = TypeVar("Source")


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
        kind: what one of them is called in messages, such as architecture.
        group: of the entry points through which other packages offer theirs; None: they cannot.
        builtin: modules of this package whose import registers its own.
        left: what was part of this package once, and where it is now.
        own: what follows the known names in a refusal: how something of the user's own becomes known.
    """

    def __init__(
        self,
        kind: str,
        group: str | None,
        builtin: Sequence[str] = (),
        left: Mapping[str, str] | None = None,
        own: str = "",
    ) -> None:
        self.kind, self.group, self.builtin, self.left = kind, group, tuple(builtin), dict(left or {})
        self.own = own
        self._items: dict[str, tuple[T, str]] = {}
        self._loaded: set[str] = set()

    def add(self, name: str, item: T, source: object) -> None:
        """Make a thing known under a name; the same source may come again, as when its module is reloaded.

        Args:
            name: what users write.
            item: the thing.
            source: the class or function that it was made from.

        Raises:
            InputError: when something else has the name already.
        """
        origin = f"{getattr(source, '__module__', '?')}.{getattr(source, '__qualname__', '?')}"
        other = self._items.get(name)
        if other is not None and other[1] != origin:
            raise InputError(
                f"two {self.kind}s are called {name!r}: {other[1]} and {origin}",
                hint="register one of them under another name",
            )
        self._items[name] = (item, origin)

    def registering(self, name: str, make: Callable[[Any], T]) -> Callable[[Source], Source]:
        """A decorator that makes what it is put on known under a name, and leaves it as it is.

        Args:
            name: what users write.
            make: the thing, from the class or function.

        Raises:
            InputError: when something else has the name already.
        """

        def register(source: Source) -> Source:
            self.add(name, make(source), source)
            return source

        return register

    def get(self, name: str, *, key: str | None = None, own: str | None = None) -> T:
        """The thing of that name.

        Args:
            name: what the user wrote.
            key: of the configuration, for the message.
            own: what follows the known names in the refusal, where that is another thing here than elsewhere.

        Raises:
            InputError: when there is none, with the nearest known names.
        """
        known = self.all()
        if name not in known:
            hint = self.left.get(name) or did_you_mean(name, known) + (self.own if own is None else own)
            raise InputError(f"no {self.kind} is called {name!r}", key=key, hint=hint)
        return known[name]

    def all(self) -> dict[str, T]:
        """All of them by name: the package's own first, then those found through entry points."""
        for module in self.builtin:
            if module not in self._loaded:
                importlib.import_module(module)
                self._loaded.add(module)
        for point in _offered(entry_points, self.group) if self.group else ():
            if point.value not in self._loaded:
                try:
                    point.load()
                except InputError:
                    raise
                except Exception as error:
                    raise InputError(
                        f"the entry point {point.name!r} ({point.value}) of group {self.group} "
                        f"does not load: {error}",
                        hint="mend or uninstall that package",
                    ) from error
                self._loaded.add(point.value)
        return {name: item for name, (item, _) in self._items.items()}


@cache
def _offered(find: Callable[..., Iterable[EntryPoint]], group: str) -> tuple[EntryPoint, ...]:
    """What packages offer in a group, looked for once: it takes as long as there are packages."""
    return tuple(find(group=group))


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
        return first_line(self.model)

    def configure(self, preset: str | None = None, **options: object) -> Any:
        """The config of a preset with single options replaced.

        Raises:
            InputError: for an unknown preset or option, with the nearest known names.
        """
        if preset is not None and preset not in self.presets:
            raise InputError(f"{self.name} has no preset {preset!r}", hint=did_you_mean(preset, self.presets))
        known = [f.name for f in fields(self.config)]
        for key in options:
            if key not in known:
                raise InputError(f"{self.name} has no option {key!r}", hint=did_you_mean(key, known))
        return self.config(**{**(self.presets[preset] if preset else {}), **options})


MODELS: Registry[ModelInfo] = Registry(
    "architecture",
    ENTRY_POINT_GROUP,
    (
        "pimlip_zoo.models.nequip",
        "pimlip_zoo.models.allegro",
        "pimlip_zoo.models.mace",
        "pimlip_zoo.models.mace_nonlinear",
    ),
    own="; one of your own: install its package, or import its module first",
)


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
    return MODELS.registering(name, lambda cls: ModelInfo(name, cls, config, dict(presets or {})))


def get_model(name: str) -> ModelInfo:
    """The architecture of that name.

    Raises:
        InputError: when there is none, with the nearest known names.
    """
    return MODELS.get(name)


def available_models() -> dict[str, ModelInfo]:
    """All architectures by name: the package's own first, then those found through entry points."""
    return MODELS.all()
