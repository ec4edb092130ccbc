"""The residuals: what is left over where energies and forces of one potential do not agree.

Energies and forces at displaced copies of a structure have to fit together by Taylor's theorem and by the conservation
of energy. PITC and PISC are those of Takamoto, Zaverkin, Niepert, "Physics-Informed Weakly Supervised Learning for
Interatomic Potentials", arXiv 2408.05215; the Taylor augmentation is from Cooper et al., npj Comput. Mater. 6, 54
(2020).

Notation: ``r`` the structure, ``d`` and ``p`` displacements of all its atoms in Å, ``<d, F>`` a sum over the atoms of
ONE structure. Every residual is (M,) eV, one number for each structure. ``s.target`` is the side that a teacher can
take.

Another residual is another function; from outside this package by the entry-point group ``pimlip_zoo.residuals``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from pimlip_zoo.consistency.surface import ORIGIN, STRAINED, D, Detach, P, Reads, Surface, reads_of
from pimlip_zoo.errors import InputError
from pimlip_zoo.registry import BASELINE, Registry
from pimlip_zoo.section import parse_options


@dataclass(frozen=True)
class Residual:
    """A residual and what is known of it."""

    name: str
    function: Callable[..., Tensor]
    """``(surface)``, or ``(surface, options)`` where it has options."""
    equation: str
    order: int | None
    """Power of the displacement with which it falls on a smooth conservative surface; None: it does not."""
    penalty: bool
    """Whether it is a loss by itself, to be weighted as it is, and not an error in eV to be squared."""
    options: type[BaseModel] | None

    @cached_property
    def reads(self) -> Reads:
        """What it looks at."""
        return reads_of(self.bound())

    @property
    def refuses_teacher(self) -> bool:
        """Whether it compares displaced copies and has no side that a teacher could take."""
        return self.reads.displaced and not self.penalty and not self.reads.target

    def bound(self, options: Mapping[str, Any] | None = None) -> Callable[[Surface], Tensor]:
        """The function of a surface alone, with these options.

        Raises:
            InputError: for options that it does not have.
        """
        key = f"weak.terms.{self.name}.options"
        if self.options is None:
            for name in options or {}:
                raise InputError(f"{self.name} has no option {name!r}", key=key, hint="leave it out")
            return self.function
        return partial(self.function, options=parse_options(self.options, options or {}, key))


RESIDUALS: Registry[Residual] = Registry(
    "consistency residual",
    "pimlip_zoo.residuals",
    left=dict.fromkeys(("noisy_labels", "denoising"), BASELINE),
)


def residual(
    name: str,
    *,
    equation: str,
    order: int | None = None,
    penalty: bool = False,
    options: type[BaseModel] | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator that makes a function of a surface known as a residual.

    Args:
        name: what users write after ``weak.terms``.
        equation: what it is, in one line.
        order: power of the displacement with which it falls on a smooth conservative surface.
        penalty: it is a loss by itself, not an error in eV that is divided by the number of atoms and squared.
        options: the type of its options, which it then takes as ``options``; all of them have defaults.

    Raises:
        InputError: when another one has the name already.
    """
    return RESIDUALS.registering(
        name, lambda function: Residual(name, function, equation, order, penalty, options)
    )


def get_residual(name: str) -> Residual:
    """The residual of that name.

    Raises:
        InputError: for an unknown one, with the nearest known names.
    """
    return RESIDUALS.get(name)


def evaluate_residuals(
    surface: Surface, names: Iterable[str], detach: Detach | Mapping[str, Detach] | None = None
) -> dict[str, Tensor]:
    """Several residuals of a surface, whose copies are evaluated together.

    Args:
        surface: the surface.
        names: of the residuals.
        detach: the side that gets no gradient, for all or by name; None: as the surface has it.

    Returns:
        (M,) eV by name, NaN where a structure lacks a label.

    Raises:
        InputError: for an unknown name, or a residual that lacks labels, a displacement, or a target side.
    """
    chosen = {name: get_residual(name) for name in names}
    reads = Reads()
    for one in chosen.values():
        if surface.taught is not None and one.refuses_teacher:
            raise InputError(
                f"{one.name} has no target side that a teacher could take",
                key="teacher",
                hint="use it without a teacher",
            )
        reads = reads | one.reads
    surface.evaluate(reads)
    values = {}
    for name, one in chosen.items():
        side = detach.get(name, "none") if isinstance(detach, Mapping) else detach
        values[name] = one.bound()(surface if side is None else surface.detached(side))
    return values


@residual("pitc_first_order", order=2, equation="E(r+d) - [E(r) - <d, F(r)>]")
def pitc_first_order(s: Surface) -> Tensor:
    """The paper's PITC: ``<d, H d>/2`` and higher."""
    return s.E(D) - s.target.E(ORIGIN) + s.work(D, s.target.F(ORIGIN))


@residual("pitc_trapezoid", order=3, equation="E(r+d) - [E(r) - <d, (F(r) + F(r+d))/2>]")
def pitc_trapezoid(s: Surface) -> Tensor:
    """Zero on a harmonic surface."""
    t = s.target
    return s.E(D) - t.E(ORIGIN) + s.work(D, 0.5 * (t.F(ORIGIN) + t.F(D)))


@residual("pitc_midpoint", order=3, equation="E(r+d) - [E(r) - <d, F(r+d/2)>]")
def pitc_midpoint(s: Surface) -> Tensor:
    """Zero on a harmonic surface."""
    return s.E(D) - s.target.E(ORIGIN) + s.work(D, s.target.F(D / 2))


@residual("pitc_central", order=3, equation="[E(r+d) - E(r-d)]/2 + <d, F(r)>")
def pitc_central(s: Surface) -> Tensor:
    """Zero on a harmonic surface."""
    return 0.5 * (s.E(D) - s.E(-D)) + s.work(D, s.target.F(ORIGIN))


@residual("pisc_triangle", order=2, equation="E(r+d) - [E(r+p) - <d-p, F(r+p)>]")
def pisc_triangle(s: Surface) -> Tensor:
    """The paper's PISC."""
    return s.E(D) - s.target.E(P) + s.work(D - P, s.target.F(P))


@residual("pisc_two_estimates", order=2, equation="[E(r) - <p, F(r)>] - [E(r+d) - <p-d, F(r+d)>]")
def pisc_two_estimates(s: Surface) -> Tensor:
    """Two estimates of ``E(r+p)``, where nothing is evaluated; the copy at ``d`` is the one that PITC looks at."""
    return s.E(ORIGIN) - s.E(D) + s.work(P - D, s.F(D)) - s.work(P, s.F(ORIGIN))


@residual("loop_trapezoid", order=3, equation="∮ F·dl over r -> r+p -> r+d -> r, trapezoid on each side")
def loop_trapezoid(s: Surface) -> Tensor:
    """Exact where the forces are linear in the positions; no energies enter."""
    r, d, p = s.F(ORIGIN), s.F(D), s.F(P)
    return 0.5 * (s.work(P, r + p) + s.work(D - P, p + d)) - 0.5 * s.work(D, d + r)


@residual("loop_simpson", order=5, equation="∮ F·dl over r -> r+p -> r+d -> r, Simpson on each side")
def loop_simpson(s: Surface) -> Tensor:
    """The corners and the middles of the sides; no energies enter."""
    r, d, p = s.F(ORIGIN), s.F(D), s.F(P)
    total = s.work(P, r + 4.0 * s.F(P / 2) + p) + s.work(D - P, p + 4.0 * s.F((D + P) / 2) + d)
    return (total - s.work(D, d + 4.0 * s.F(D / 2) + r)) / 6.0


@residual("anchor_first_order", order=2, equation="E_ref(r) - [E(r+d) + <d, F(r+d)>]")
def anchor_first_order(s: Surface) -> Tensor:
    """The label, reached from the displaced copy."""
    return s.E_ref - s.E(D) - s.work(D, s.F(D))


@residual("anchor_trapezoid", order=3, equation="E_ref(r) - [E(r+d) + <d, (F(r) + F(r+d))/2>]")
def anchor_trapezoid(s: Surface) -> Tensor:
    """The label, reached from the displaced copy."""
    return s.E_ref - s.E(D) - s.work(D, 0.5 * (s.F(ORIGIN) + s.F(D)))


@residual("taylor_augmentation", order=2, equation="E(r+d) - [E_ref(r) - <d, F_ref(r)>]")
def taylor_augmentation(s: Surface) -> Tensor:
    """Labels extrapolated to the displaced copy."""
    return s.E(D) - s.E_ref + s.work(D, s.F_ref)


@residual("taylor_central", order=3, equation="[E(r+d) - E(r-d)]/2 + <d, F_ref(r)>")
def taylor_central(s: Surface) -> Tensor:
    """Force labels alone."""
    return 0.5 * (s.E(D) - s.E(-D)) + s.work(D, s.F_ref)


@residual("strain_first_order", order=2, equation="E(ε) - [E(0) - ε : W(0)], periodic structures")
def strain_first_order(s: Surface) -> Tensor:
    """With the virial ``W = -dE/dε``."""
    return s.E(STRAINED) - s.E(ORIGIN) + (s.strain * s.W(ORIGIN)).sum(dim=(1, 2))


@residual("strain_trapezoid", order=3, equation="E(ε) - E(0) by the trapezoid rule, periodic structures")
def strain_trapezoid(s: Surface) -> Tensor:
    """``E(ε) - [E(0) - (ε : W(0) + (1+ε)^-1 ε : W(ε))/2]``.

    The virial of the strained structure is a derivative by further strain on top of ``ε``: along the path ``1 + tε``
    ``dE/dt = -(1+ε)^-1 ε : W``.
    """
    identity = torch.eye(3, dtype=s.strain.dtype, device=s.strain.device)
    along: Tensor = torch.linalg.solve(identity + s.strain, s.strain)
    work = (s.strain * s.W(ORIGIN)).sum(dim=(1, 2)) + (along * s.W(STRAINED)).sum(dim=(1, 2))
    return s.E(STRAINED) - s.E(ORIGIN) + 0.5 * work


@residual("curl", penalty=True, equation="(J - J^T) v with J = dF/dr, direct heads")
def curl(s: Surface) -> Tensor:
    """The squared norm, (eV/Å²)²."""
    return s.sum(s.curl().square())
