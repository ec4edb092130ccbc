"""The lowest path between two structures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.physics.property import KINDS, Findings, NotPossibleError, Options, Work, register_property

if TYPE_CHECKING:
    from pimlip_zoo.physics.task import Task

_SAME = 0.05  # Å


class NEBOptions(Options):
    """Of the nudged elastic band."""

    images: int = Field(default=7, ge=1)
    """Between the ends."""
    fmax: float = Field(default=0.05, gt=0)
    """eV/Å, the largest force across the path that is left."""
    steps: int = Field(default=200, ge=1)
    """At most, of the path, half of them before an image climbs."""


def _obstacle(task: Task, options: Any) -> str | None:  # noqa: ARG001
    return None if task.end is not None else "a second structure is needed (--to FILE)"


def _cost(task: Task, options: NEBOptions) -> list[Work]:
    return [Work(60 + options.images * min(60, options.steps), len(task.structure))]


@register_property("neb", kinds=KINDS, cost=_cost, options=NEBOptions, obstacle=_obstacle)
def neb(task: Task, options: NEBOptions, found: Findings) -> None:
    """Barrier and reaction energy between two structures, by a nudged elastic band with a climbing image.

    G. Henkelman, B. P. Uberuaga, H. Jónsson, J. Chem. Phys. 113, 9901 (2000), from a path of image dependent pair
    potentials. Both ends are relaxed before.
    """
    from ase.mep import NEB
    from ase.optimize import FIRE

    if task.end is None:
        raise NotPossibleError("a second structure is needed")
    ends = []
    for name, structure in (("first", task.structure), ("second", task.end)):
        atoms = task.asked(structure)
        result = relax(atoms, fmax=min(options.fmax, 0.02), steps=300)
        if not result.converged:
            found.doubts.append(
                f"the {name} structure is not relaxed: forces up to {result.largest_force:.2g} eV/Å are left"
            )
        ends.append(atoms)
    periodic = bool(ends[0].pbc.any())
    from ase.geometry import find_mic

    vectors = ends[1].positions - ends[0].positions
    if periodic:
        vectors = find_mic(vectors, ends[0].cell, ends[0].pbc)[0]
    apart = float(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).max())
    energies = [atoms.get_potential_energy() for atoms in ends]
    found.add("reaction_energy", energies[1] - energies[0], "eV")
    if apart < _SAME:
        raise NotPossibleError(
            "both structures relax to the same one: the potential has one minimum for the two"
        )
    images = [task.asked(ends[0]), *(task.asked(ends[0]) for _ in range(options.images)), task.asked(ends[1])]
    band = NEB(images, climb=False, method="improvedtangent", allow_shared_calculator=True)
    band.interpolate(method="idpp", mic=periodic)
    half = max(1, options.steps // 2)
    FIRE(band, logfile=None).run(fmax=3 * options.fmax, steps=half)
    band.climb = True
    converged = bool(FIRE(band, logfile=None).run(fmax=options.fmax, steps=options.steps - half or 1))
    profile = np.array([image.get_potential_energy() for image in images])
    left = float(np.linalg.norm(band.get_forces().reshape(-1, 3), axis=1).max())
    found.series |= {"energies": (profile - profile[0]).tolist(), "images": len(images)}
    found.add("barrier", profile.max() - profile[0], "eV")
    found.add("barrier_back", profile.max() - profile[-1], "eV")
    if not converged:
        found.doubts.append(
            f"the path is not relaxed: forces up to {left:.2g} eV/Å are left; raise neb.steps"
        )
    top = int(np.argmax(profile))
    if top in (0, len(profile) - 1):
        found.doubts.append("no image is higher than both ends: there is no barrier, or too few images")
    minima = [
        k for k in range(1, len(profile) - 1) if profile[k] < min(profile[k - 1], profile[k + 1]) - 0.005
    ]
    if minima:
        found.doubts.append("there is a minimum between the ends: the path has more than one barrier")
