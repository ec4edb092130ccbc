"""A property that a potential is judged by: what it is of, what it costs, what was found, and what was not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from pimlip_zoo.registry import Registry, first_line
from pimlip_zoo.section import parse_options

if TYPE_CHECKING:
    from pimlip_zoo.physics.task import Task

Kind = Literal["crystal", "liquid", "slab", "chain", "molecule", "atom"]
KINDS: tuple[Kind, ...] = ("crystal", "liquid", "slab", "chain", "molecule", "atom")
"""What a structure can be; see :func:`pimlip_zoo.physics.kinds.find_kind`."""


class Options(BaseModel):
    """Options of a property; all of them have defaults."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, use_attribute_docstrings=True, frozen=True
    )


class NotPossibleError(Exception):
    """The potential does not give this property; the text says why."""


class StoppedError(Exception):
    """The user ended it."""


@dataclass(frozen=True)
class Value:
    """One number that was found, or several of one kind."""

    value: float | list[float]
    unit: str


@dataclass
class Findings:
    """What a property's function writes to as it goes, so that what was found before a failure stays."""

    values: dict[str, Value] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict)
    """What pictures are drawn from: numbers, strings, lists and tables of them."""
    doubts: list[str] = field(default_factory=list)
    """Why the values should not be trusted as they are."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know."""

    def add(self, name: str, value: Any, unit: str = "") -> None:
        """Write down a value: a number, or an array of numbers.

        Raises:
            NotPossibleError: when it is not a number.
        """
        numbers = np.asarray(value, dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise NotPossibleError(f"{name} is not a number")
        self.values[name] = Value(numbers.tolist(), unit)


@dataclass(frozen=True)
class Work:
    """A part of a cost."""

    evaluations: int
    atoms: int
    """In each of them."""
    shared: str = ""
    """What it is of, where several properties use the result of one."""


def _everywhere(task: Task, options: Any) -> str | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Property:
    """A property and what is needed to measure it."""

    name: str
    """What users write."""
    function: Callable[[Task, Any, Findings], None]
    """Called as ``function(task, options, found)``."""
    kinds: frozenset[str]
    """Structures that it is defined for."""
    options: type[Options]
    cost: Callable[[Task, Any], list[Work]]
    """About how many evaluations it takes."""
    obstacle: Callable[[Task, Any], str | None] = _everywhere
    """Why a structure of the right kind does not have it, where that is known beforehand; None: it has."""

    @property
    def description(self) -> str:
        """First line of the function's docstring."""
        return first_line(self.function)

    def configure(self, options: Mapping[str, Any]) -> Options:
        """The options with single values replaced.

        Raises:
            InputError: for one that there is not, or a value that it does not take.
        """
        return parse_options(self.options, options, self.name)


PROPERTIES: Registry[Property] = Registry(
    "property",
    "pimlip_zoo.properties",
    tuple(
        f"pimlip_zoo.physics.{module}"
        for module in (
            "lattice",
            "equation_of_state",
            "elastic",
            "phonons",
            "vacancy",
            "surfaces",
            "liquid",
            "vibrations",
            "torsions",
            "bonds",
            "neb",
        )
    ),
)

Function = Callable[["Task", Any, Findings], None]


def register_property(
    name: str,
    *,
    kinds: tuple[Kind, ...],
    cost: Callable[[Task, Any], list[Work]],
    options: type[Options] = Options,
    obstacle: Callable[[Task, Any], str | None] = _everywhere,
) -> Callable[[Function], Function]:
    """Decorator that makes a function known as a property.

    Args:
        name: what users write.
        kinds: structures that it is defined for.
        cost: about how many evaluations it takes, called with the task and the options.
        options: the type of its options.
        obstacle: why a structure of the right kind does not have it; None: it has.

    Raises:
        InputError: when another one has the name already.
    """
    return PROPERTIES.registering(
        name, lambda function: Property(name, function, frozenset(kinds), options, cost, obstacle)
    )
