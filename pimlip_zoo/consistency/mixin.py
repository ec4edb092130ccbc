"""Physics-informed weak supervision for every potential.

The mathematics is in :mod:`pimlip_zoo.consistency.equations`; here the displaced copies are made and evaluated,
all in one forward (conservative forces: one for the copies that need forces, one for the others).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pimlip_zoo.consistency.displaced import displaced_copies, strained, trim_edges
from pimlip_zoo.consistency.equations import strain_first_order, strain_trapezoid
from pimlip_zoo.consistency.residuals import (
    Detach,
    Needs,
    Point,
    Values,
    displacement_at,
    get_residual,
    needs_of,
)
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Labels, Predictions

if TYPE_CHECKING:
    from pimlip_zoo.losses.base import PotentialLike

__all__ = ["PhysicsWeakMixin"]

Known = tuple[Mapping[Point, Tensor], Mapping[Point, Tensor]]
"""Energies (M,) and forces (N, 3) of copies."""

_R: Point = (0.0, 0.0)


class PhysicsWeakMixin:
    """Residuals of consistency losses on displaced copies; only calls the potential itself.

    Shapes and units of all of them: ``d`` and ``p`` are displacements (N, 3) in Å; a residual is (M,) in eV,
    one for each structure; ``<d, F>`` is a sum over the atoms of one structure. ``base`` are predictions on
    ``graph`` if they are known already (with forces, where the residual needs forces at ``r``). Neighbour
    lists have to reach the cutoff plus the largest relative displacement; longer edges change nothing.
    """

    def pitc_first_order(self, graph: AtomGraph, d: Tensor, *, base: Predictions | None = None) -> Tensor:
        """``E(r+d) - [E(r) - <d, F(r)>]``, the paper's PITC: (M,) eV. Falls as ``|d|²``."""
        return self._one("pitc_first_order", graph, d, base=base)

    def pitc_trapezoid(self, graph: AtomGraph, d: Tensor, *, base: Predictions | None = None) -> Tensor:
        """``E(r+d) - [E(r) - <d, (F(r) + F(r+d))/2>]``: (M,) eV. Falls as ``|d|³``."""
        return self._one("pitc_trapezoid", graph, d, base=base)

    def pitc_midpoint(self, graph: AtomGraph, d: Tensor, *, base: Predictions | None = None) -> Tensor:
        """``E(r+d) - [E(r) - <d, F(r+d/2)>]``: (M,) eV. Falls as ``|d|³``."""
        return self._one("pitc_midpoint", graph, d, base=base)

    def pitc_central(self, graph: AtomGraph, d: Tensor, *, base: Predictions | None = None) -> Tensor:
        """``[E(r+d) - E(r-d)]/2 + <d, F(r)>``: (M,) eV. Falls as ``|d|³``."""
        return self._one("pitc_central", graph, d, base=base)

    def pisc_triangle(
        self, graph: AtomGraph, d: Tensor, p: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """``E(r+d) - [E(r+p) - <d-p, F(r+p)>]``, the paper's PISC: (M,) eV. Falls as ``|d|²``."""
        return self._one("pisc_triangle", graph, d, p, base=base)

    def pisc_two_estimates(
        self, graph: AtomGraph, d: Tensor, p: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """``[E(r) - <p, F(r)>] - [E(r+d) - <p-d, F(r+d)>]``, one copy at ``d``: (M,) eV. Falls as ``|d|²``."""
        return self._one("pisc_two_estimates", graph, d, p, base=base)

    def loop_trapezoid(
        self, graph: AtomGraph, d: Tensor, p: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """``∮ F·dl`` over ``r -> r+p -> r+d -> r`` by the trapezoid rule: (M,) eV. No energies enter."""
        return self._one("loop_trapezoid", graph, d, p, base=base)

    def loop_simpson(
        self, graph: AtomGraph, d: Tensor, p: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """``∮ F·dl`` over ``r -> r+p -> r+d -> r`` by Simpson's rule: (M,) eV. No energies enter."""
        return self._one("loop_simpson", graph, d, p, base=base)

    def anchor_first_order(self, graph: AtomGraph, d: Tensor, labels: Labels) -> Tensor:
        """``E_ref(r) - [E(r+d) + <d, F(r+d)>]``: (M,) eV, NaN where a structure has no energy label."""
        return self._one("anchor_first_order", graph, d, labels=labels)

    def anchor_trapezoid(
        self, graph: AtomGraph, d: Tensor, labels: Labels, *, base: Predictions | None = None
    ) -> Tensor:
        """``E_ref(r) - [E(r+d) + <d, (F(r)+F(r+d))/2>]``: (M,) eV, NaN where there is no energy label."""
        return self._one("anchor_trapezoid", graph, d, base=base, labels=labels)

    def taylor_augmentation(self, graph: AtomGraph, d: Tensor, labels: Labels) -> Tensor:
        """``E(r+d) - [E_ref(r) - <d, F_ref(r)>]``: (M,) eV, NaN where a label is missing."""
        return self._one("taylor_augmentation", graph, d, labels=labels)

    def strain_first_order(
        self, graph: AtomGraph, strain: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """``E(ε) - [E(0) - ε : W(0)]`` for strains (M, 3, 3): (M,) eV. Falls as ``|ε|²``."""
        self._refuse_molecules(graph)
        start = self._with_virial(graph, base)
        end = self._predict(strained(graph, strain), forces=False, virial=False)
        return strain_first_order(start.energy, end.energy, start.virial, strain)

    def strain_trapezoid(
        self, graph: AtomGraph, strain: Tensor, *, base: Predictions | None = None
    ) -> Tensor:
        """``E(ε) - [E(0) - (ε : W(0) + (1+ε)^-1 ε : W(ε))/2]``: (M,) eV. Falls as ``|ε|³``."""
        self._refuse_molecules(graph)
        start = self._with_virial(graph, base)
        end = self._predict(strained(graph, strain), forces=False, virial=True)
        return strain_trapezoid(start.energy, end.energy, start.virial, end.virial, strain)

    def curl(self, graph: AtomGraph, v: Tensor) -> Tensor:
        """``(J - J^T) v`` with ``J = dF/dr``, for a direct head: by one JVP and one VJP.

        The JVP is the derivative of the VJP with respect to its cotangent, so that every backend that can be
        differentiated twice can do it. Its norm over a structure is a sample of how far the forces are from
        being a gradient.

        Args:
            graph: the structures.
            v: (N, 3), of unit norm in each structure (:func:`pimlip_zoo.consistency.draw.random_unit`).

        Returns:
            (N, 3) eV/Å².

        Raises:
            InputError: on a conservative head, whose curl is zero.
        """
        if not self._is_direct():
            raise InputError(
                "forces are the gradient of an energy and have no curl",
                key="curl",
                mend="leave the term out, or use a direct force head",
            )
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = graph.positions.detach().requires_grad_(True)
            forces = self._predict(graph._replace(positions=positions), forces=True, virial=False).forces
            cotangent = torch.zeros_like(forces, requires_grad=True)
            (row,) = torch.autograd.grad(forces, positions, cotangent, create_graph=True)
            (jvp,) = torch.autograd.grad(row, cotangent, v, create_graph=keep, retain_graph=True)
            (vjp,) = torch.autograd.grad(forces, positions, v, create_graph=keep)
        result: Tensor = jvp - vjp
        return result

    def weak_residuals(
        self,
        names: Iterable[str],
        graph: AtomGraph,
        d: Tensor,
        p: Tensor | None = None,
        *,
        base: Predictions | None = None,
        known: Known | None = None,
        labels: Labels | None = None,
        teacher: PotentialLike | None = None,
        detach: Detach | Mapping[str, Detach] = "none",
    ) -> dict[str, Tensor]:
        """Several residuals that share their copies, each copy evaluated once.

        Args:
            names: of :data:`pimlip_zoo.consistency.residuals.RESIDUALS`.
            graph: the structures.
            d: (N, 3) Å.
            p: (N, 3) Å, for residuals with two displacements.
            base: predictions on ``graph``.
            known: energies and forces of copies that have been evaluated already.
            labels: for residuals that need them.
            teacher: takes the target side of each residual, without gradient.
            detach: the side that gets no gradient, for all or by name.

        Returns:
            (M,) eV by name.

        Raises:
            InputError: for an unknown name, or a residual that lacks labels, ``p``, or a target side.
        """
        chosen = list(names)
        own, target = needs_of(chosen, teacher=teacher is not None)
        if p is None and any(get_residual(name).second for name in chosen):
            raise InputError("a residual with two displacements was given one", key="p")
        second = torch.zeros_like(d) if p is None else p
        start = _from_base(graph, base) if known is None else known
        energy, forces = self._evaluate(cast("PotentialLike", self), graph, own, d, second, start)
        if teacher is not None:
            with torch.no_grad():
                teacher_energy, teacher_forces = self._evaluate(teacher, graph, target, d, second, ({}, {}))
            # What is known of the undisplaced structures is the trained model's, and not the target.
            energy = {**teacher_energy, **{point: energy[point] for point in own.energies}}
            forces = teacher_forces
        values = Values(energy, forces, d, second, graph.batch, graph.num_graphs, labels)
        sides = dict.fromkeys(chosen, detach) if isinstance(detach, str) else detach
        return {
            name: get_residual(name).function(values.detached(sides.get(name, "none"))) for name in chosen
        }

    def displaced(
        self, graph: AtomGraph, displacements: Sequence[Tensor], *, forces: bool = True
    ) -> list[Predictions]:
        """Predictions on displaced copies of a batch, all from one forward.

        Args:
            graph: the structures, their neighbour lists wide enough.
            displacements: K of (N, 3) Å.
            forces: with forces, or energies alone.

        Returns:
            K predictions, without virials.
        """
        copies = displaced_copies(graph, displacements)
        result = self._predict(trim_edges(copies, self._cutoff()), forces=forces, virial=False)
        count = len(displacements)
        empty = [result.forces] * count
        return [
            Predictions(energy, force, result.virial, atomic)
            for energy, force, atomic in zip(
                result.energy.chunk(count),
                result.forces.chunk(count) if forces else empty,
                result.atomic_energy.chunk(count),
                strict=True,
            )
        ]

    def _one(
        self,
        name: str,
        graph: AtomGraph,
        d: Tensor,
        p: Tensor | None = None,
        *,
        base: Predictions | None = None,
        labels: Labels | None = None,
    ) -> Tensor:
        return self.weak_residuals((name,), graph, d, p, base=base, labels=labels)[name]

    def _evaluate(
        self,
        potential: PotentialLike,
        graph: AtomGraph,
        needs: Needs,
        d: Tensor,
        p: Tensor,
        known: Known,
    ) -> tuple[dict[Point, Tensor], dict[Point, Tensor]]:
        """Energies and forces of every copy that is needed and not known."""
        energy, forces = dict(known[0]), dict(known[1])
        with_forces = [point for point in needs.with_forces if point not in forces]
        energy_only = [point for point in needs.energy_only if point not in energy]
        if self._is_direct() and with_forces:
            # A direct head gives forces for next to nothing: one forward does it all.
            with_forces, energy_only = with_forces + energy_only, []
        for points, wanted in ((with_forces, True), (energy_only, False)):
            if not points:
                continue
            copies = displaced_copies(graph, [displacement_at(point, d, p) for point in points])
            result = potential(trim_edges(copies, self._cutoff()), forces=wanted, virial=False)
            energy.update(zip(points, result.energy.chunk(len(points)), strict=True))
            if wanted:
                forces.update(zip(points, result.forces.chunk(len(points)), strict=True))
        return energy, forces

    def _predict(self, graph: AtomGraph, *, forces: bool = True, virial: bool = True) -> Predictions:
        return cast("PotentialLike", self)(graph, forces=forces, virial=virial)

    def _with_virial(self, graph: AtomGraph, base: Predictions | None) -> Predictions:
        if base is not None and len(base.virial) == graph.num_graphs:
            return base
        return self._predict(graph, forces=False, virial=True)

    def _cutoff(self) -> float:
        return float(self.cutoff)  # type: ignore[attr-defined]

    def _is_direct(self) -> bool:
        return bool(self.is_direct)  # type: ignore[attr-defined]

    @staticmethod
    def _refuse_molecules(graph: AtomGraph) -> None:
        without = (graph.cell.abs().amax(dim=(1, 2)) == 0).nonzero().flatten().tolist()
        if without:
            raise InputError(
                f"structure {without[0]} of the batch is a molecule, which has no cell to strain",
                key="strain",
                mend="leave the strain term out, or train on periodic structures only",
            )


def _from_base(graph: AtomGraph, base: Predictions | None) -> Known:
    """What predictions on the undisplaced structures make known."""
    if base is None:
        return {}, {}
    has_forces = len(base.forces) == len(graph.positions)
    return {_R: base.energy}, ({_R: base.forces} if has_forces else {})
