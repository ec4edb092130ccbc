"""Physics-informed weak supervision for every potential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from pimlip_zoo.consistency.residuals import evaluate_residuals
from pimlip_zoo.consistency.surface import Detach, Surface
from pimlip_zoo.graph import AtomGraph, Labels, Predictions

if TYPE_CHECKING:
    from pimlip_zoo.losses.base import PotentialLike


class PhysicsWeakMixin:
    """How far a potential is from agreeing with itself around structures; only calls the potential itself."""

    def surface(
        self,
        graph: AtomGraph,
        d: Tensor | None = None,
        p: Tensor | None = None,
        *,
        strain: Tensor | None = None,
        direction: Tensor | None = None,
        labels: Labels | None = None,
        teacher: PotentialLike | None = None,
        detach: Detach = "none",
        base: Predictions | None = None,
    ) -> Surface:
        """The potential around structures: ``s.E(D)``, ``s.F(ORIGIN)``, ``s.work(D, s.F(D))``.

        Args:
            graph: M structures, N atoms. Their neighbour lists reach the cutoff plus the largest relative displacement;
                longer edges change nothing.
            d: (N, 3) Å, displacements of all atoms.
            p: (N, 3) Å, further ones, for residuals with two displacements.
            strain: (M, 3, 3), symmetric, for residuals of strained structures.
            direction: (N, 3), of unit norm in each structure, for the curl of a direct head.
            labels: for residuals that need them.
            teacher: takes the target side of each residual, without gradient.
            detach: the side that gets no gradient.
            base: predictions on ``graph``, where they are known.
        """
        return Surface(
            cast("PotentialLike", self),
            graph,
            d,
            p,
            strain=strain,
            direction=direction,
            labels=labels,
            teacher=teacher,
            detach=detach,
            base=base,
        )

    def residual(self, name: str, graph: AtomGraph, *displacements: Tensor, **options: Any) -> Tensor:
        """A residual by its name: (M,) eV, NaN where a label is missing.

        Several at once, their copies shared: :func:`pimlip_zoo.consistency.residuals.evaluate_residuals`.

        Args:
            name: of the residual.
            graph: as :meth:`surface` takes it.
            displacements: ``d`` and ``p``, where the residual needs them.
            options: as :meth:`surface` takes them.

        Raises:
            InputError: for an unknown name, or a residual that lacks labels, a displacement, or a target side.
        """
        return evaluate_residuals(self.surface(graph, *displacements, **options), [name])[name]
