"""The lattice constants at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pimlip_zoo.physics.property import Findings, Options, Work, register_property

if TYPE_CHECKING:
    from pimlip_zoo.physics.task import Task

_STEPS = 25


def _cost(task: Task, options: Any) -> list[Work]:  # noqa: ARG001
    return [Work(_STEPS, len(task.structure))]


@register_property("lattice", kinds=("crystal",), cost=_cost, options=Options)
def lattice(task: Task, options: Options, found: Findings) -> None:  # noqa: ARG001
    """Lattice constants, volume and energy of the relaxed crystal.

    The constants are those of the conventional cell of the Bravais lattice, so that a primitive and a cubic cell give
    the same. The energy is that of the potential, whose zero is that of its labels.
    """
    crystal = task.crystal(found)
    found.notes += crystal.notes
    for name, value in crystal.lattice.vars().items():
        found.add(name, value, "°" if name in ("alpha", "beta", "gamma") else "Å")
    count = len(crystal.atoms)
    found.add("volume", crystal.atoms.get_volume() / count, "Å³/atom")
    found.add("energy", crystal.energy / count, "eV/atom")
    found.series |= {
        "lattice": crystal.lattice.name,
        "cell": crystal.atoms.cell.array.tolist(),
        "scaled_positions": crystal.atoms.get_scaled_positions().tolist(),
        "symbols": list(crystal.atoms.symbols),
        "stress_left": {"value": crystal.stress_left, "unit": "GPa"},
    }
