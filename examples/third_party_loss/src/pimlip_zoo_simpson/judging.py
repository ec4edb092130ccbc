"""A property that potentials are judged by: how much energy it costs to swell a molecule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from pimlip_zoo.physics.property import Findings, Options, Work, register_property

if TYPE_CHECKING:
    from pimlip_zoo.physics.task import Task


class SwellingOptions(Options):
    """Options of the property."""

    share: PositiveFloat = 0.01
    """By which all distances grow."""


@register_property(
    "swelling",
    kinds=("molecule",),
    options=SwellingOptions,
    cost=lambda task, options: [Work(2, len(task.structure))],  # noqa: ARG005
)
def swelling(task: Task, options: SwellingOptions, found: Findings) -> None:
    """The energy that a molecule takes up when it swells as a whole."""
    atoms = task.asked(task.structure)
    before = atoms.get_potential_energy()
    atoms.set_positions(atoms.get_positions() * (1.0 + options.share))
    found.add("energy", (atoms.get_potential_energy() - before) / len(atoms), "eV/atom")
