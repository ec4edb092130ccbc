"""The consistency residuals by name: what each has to know of the surface, and at which displaced copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from torch import Tensor

from pimlip_zoo.consistency import equations as c
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import Labels

__all__ = [
    "ORIGIN",
    "RESIDUALS",
    "Detach",
    "Needs",
    "Point",
    "Residual",
    "Values",
    "displacement_at",
    "get_residual",
    "needs_of",
]

Point = tuple[float, float]
"""``(a, b)`` stands for the copy at ``r + a d + b p``."""

Detach = Literal["none", "forces", "energies"]
"""Which side of a residual gets no gradient."""

ORIGIN: Point = (0.0, 0.0)
"""The undisplaced structure."""

R = ORIGIN
D: Point = (1.0, 0.0)
P: Point = (0.0, 1.0)
MINUS_D: Point = (-1.0, 0.0)
HALF_D: Point = (0.5, 0.0)
HALF_P: Point = (0.0, 0.5)
MIDDLE: Point = (0.5, 0.5)


def displacement_at(point: Point, d: Tensor, p: Tensor) -> Tensor:
    """``a d + b p`` of a copy, (N, 3) Å."""
    a, b = point
    if b == 0.0:
        return d if a == 1.0 else a * d
    return a * d + b * p


@dataclass(frozen=True)
class Values:
    """Energies (M,) eV and forces (N, 3) eV/Å of the copies, with what a residual is computed from."""

    energy: Mapping[Point, Tensor]
    forces: Mapping[Point, Tensor]
    d: Tensor
    p: Tensor
    index: Tensor
    count: int
    labels: Labels | None = None

    def detached(self, side: Detach) -> Values:
        """The same values, those of one side without gradient."""
        if side == "forces":
            return replace(self, forces={point: value.detach() for point, value in self.forces.items()})
        if side == "energies":
            return replace(self, energy={point: value.detach() for point, value in self.energy.items()})
        return self

    @property
    def e_ref(self) -> Tensor:
        """(M,) eV, the labels."""
        if self.labels is None:
            raise InputError("this residual needs labels, and none were given")
        return self.labels.energy

    @property
    def f_ref(self) -> Tensor:
        """(N, 3) eV/Å, the labels."""
        if self.labels is None:
            raise InputError("this residual needs labels, and none were given")
        return self.labels.forces


@dataclass(frozen=True)
class Residual:
    """One row of the table."""

    name: str
    equation: str
    order: int
    """Power of the displacement with which it falls on a smooth conservative surface."""
    function: Callable[[Values], Tensor]
    energies: tuple[Point, ...] = ()
    """Copies whose energy enters."""
    forces: tuple[Point, ...] = ()
    """Copies whose forces enter."""
    student: tuple[Point, ...] | None = None
    """With a teacher: copies whose energy remains the trained model's; None: there is no target side."""
    labels: Literal["none", "energy", "forces"] = "none"
    """Labels that it needs."""
    second: bool = False
    """Whether the second displacement enters."""


_TABLE = (
    Residual(
        "pitc_first_order",
        "E(r+d) - [E(r) - <d, F(r)>]",
        2,
        lambda v: c.pitc_first_order(v.energy[R], v.energy[D], v.forces[R], v.d, v.index),
        energies=(R, D),
        forces=(R,),
        student=(D,),
    ),
    Residual(
        "pitc_trapezoid",
        "E(r+d) - [E(r) - <d, (F(r) + F(r+d))/2>]",
        3,
        lambda v: c.pitc_trapezoid(v.energy[R], v.energy[D], v.forces[R], v.forces[D], v.d, v.index),
        energies=(R, D),
        forces=(R, D),
        student=(D,),
    ),
    Residual(
        "pitc_midpoint",
        "E(r+d) - [E(r) - <d, F(r+d/2)>]",
        3,
        lambda v: c.pitc_midpoint(v.energy[R], v.energy[D], v.forces[HALF_D], v.d, v.index),
        energies=(R, D),
        forces=(HALF_D,),
        student=(D,),
    ),
    Residual(
        "pitc_central",
        "[E(r+d) - E(r-d)]/2 + <d, F(r)>",
        3,
        lambda v: c.pitc_central(v.energy[D], v.energy[MINUS_D], v.forces[R], v.d, v.index),
        energies=(D, MINUS_D),
        forces=(R,),
        student=(D, MINUS_D),
    ),
    Residual(
        "pisc_triangle",
        "E(r+d) - [E(r+p) - <d-p, F(r+p)>]",
        2,
        lambda v: c.pisc_triangle(v.energy[D], v.energy[P], v.forces[P], v.d, v.p, v.index),
        energies=(D, P),
        forces=(P,),
        student=(D,),
        second=True,
    ),
    Residual(
        "pisc_two_estimates",
        "[E(r) - <p, F(r)>] - [E(r+d) - <p-d, F(r+d)>]",
        2,
        # The copy is the one at d, which PITC looks at, too; nothing is evaluated at p.
        lambda v: c.pisc_two_estimates(v.energy[R], v.energy[D], v.forces[R], v.forces[D], v.p, v.d, v.index),
        energies=(R, D),
        forces=(R, D),
        second=True,
    ),
    Residual(
        "loop_trapezoid",
        "∮ F·dl over r -> r+p -> r+d -> r, trapezoid on each side",
        3,
        lambda v: c.loop_trapezoid(v.forces[R], v.forces[D], v.forces[P], v.d, v.p, v.index, v.count),
        forces=(R, D, P),
        second=True,
    ),
    Residual(
        "loop_simpson",
        "∮ F·dl over r -> r+p -> r+d -> r, Simpson on each side",
        5,
        lambda v: c.loop_simpson(
            (v.forces[R], v.forces[P], v.forces[D]),
            (v.forces[HALF_P], v.forces[MIDDLE], v.forces[HALF_D]),
            v.d,
            v.p,
            v.index,
            v.count,
        ),
        forces=(R, D, P, HALF_P, MIDDLE, HALF_D),
        second=True,
    ),
    Residual(
        "anchor_first_order",
        "E_ref(r) - [E(r+d) + <d, F(r+d)>]",
        2,
        lambda v: c.anchor_first_order(v.e_ref, v.energy[D], v.forces[D], v.d, v.index),
        energies=(D,),
        forces=(D,),
        labels="energy",
    ),
    Residual(
        "anchor_trapezoid",
        "E_ref(r) - [E(r+d) + <d, (F(r) + F(r+d))/2>]",
        3,
        lambda v: c.anchor_trapezoid(v.e_ref, v.energy[D], v.forces[R], v.forces[D], v.d, v.index),
        energies=(D,),
        forces=(R, D),
        labels="energy",
    ),
    Residual(
        "taylor_augmentation",
        "E(r+d) - [E_ref(r) - <d, F_ref(r)>]",
        2,
        lambda v: c.taylor_augmentation(v.energy[D], v.e_ref, v.f_ref, v.d, v.index),
        energies=(D,),
        labels="forces",
    ),
    Residual(
        "taylor_central",
        "[E(r+d) - E(r-d)]/2 + <d, F_ref(r)>",
        3,
        lambda v: c.pitc_central(v.energy[D], v.energy[MINUS_D], v.f_ref, v.d, v.index),
        energies=(D, MINUS_D),
        labels="forces",
    ),
)

RESIDUALS: Mapping[str, Residual] = {residual.name: residual for residual in _TABLE}


def get_residual(name: str) -> Residual:
    """The residual of that name.

    Raises:
        InputError: for an unknown one, with the nearest known names.
    """
    if name not in RESIDUALS:
        raise InputError(f"no consistency residual is called {name!r}", mend=did_you_mean(name, RESIDUALS))
    return RESIDUALS[name]


@dataclass(frozen=True)
class Needs:
    """Copies to evaluate: energies of all, forces of some."""

    energies: frozenset[Point]
    forces: frozenset[Point]

    @property
    def energy_only(self) -> list[Point]:
        """Copies whose forces nobody asks for, in a fixed order."""
        return sorted(self.energies - self.forces)

    @property
    def with_forces(self) -> list[Point]:
        """Copies whose forces enter, in a fixed order."""
        return sorted(self.forces)


def needs_of(names: Iterable[str], *, teacher: bool = False) -> tuple[Needs, Needs]:
    """What the trained model and the teacher have to be evaluated at for these residuals.

    Raises:
        InputError: when a teacher is asked for and a residual has no target side.
    """
    return _needs_of(tuple(names), teacher)


@cache
def _needs_of(names: tuple[str, ...], teacher: bool) -> tuple[Needs, Needs]:
    own: tuple[set[Point], set[Point]] = (set(), set())
    target: tuple[set[Point], set[Point]] = (set(), set())
    for residual in map(get_residual, names):
        if not teacher:
            own[0].update(residual.energies)
            own[1].update(residual.forces)
            continue
        if residual.student is None:
            raise InputError(
                f"{residual.name} has no target side that a teacher could take",
                key="teacher",
                mend="use it without a teacher",
            )
        own[0].update(residual.student)
        target[0].update(set(residual.energies) - set(residual.student))
        target[1].update(residual.forces)
    return tuple(Needs(frozenset(e), frozenset(f)) for e, f in (own, target))  # type: ignore[return-value]
