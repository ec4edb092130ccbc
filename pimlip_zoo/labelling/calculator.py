"""A potential as an ASE calculator that says how far it can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ase.calculators.calculator import all_changes

from pimlip_zoo.compiled.kernels import plain_torch
from pimlip_zoo.deploy.ase import PimlipCalculator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

    from pimlip_zoo.labelling.uncertainty import Posterior
    from pimlip_zoo.models.potential import Potential

_ITS_OWN = ("energy_uncertainty", "forces_uncertainty")


class UncertainCalculator(PimlipCalculator):
    """:class:`PimlipCalculator` with ``results["energy_uncertainty"]`` and ``results["forces_uncertainty"]``.

    In eV, and (N,) eV/Å: what the size of the error is like, from the calibrated posterior. Forces' uncertainties cost
    as many evaluations as the last layer has weights.

    Args:
        potential: ready for prediction, on the CPU.
        posterior: of this potential.
        always: compute them with every evaluation; otherwise when they are asked for by ``get_property``.
        options: of :class:`PimlipCalculator`.
    """

    implemented_properties: ClassVar[list[str]] = [*PimlipCalculator.implemented_properties, *_ITS_OWN]
    its_own: ClassVar[tuple[str, ...]] = _ITS_OWN
    """What is no sum where this is the correction to another calculator."""

    def __init__(
        self, potential: Potential, posterior: Posterior, *, always: bool = True, **options: Any
    ) -> None:
        super().__init__(potential, **options)
        self.posterior, self.always = posterior, always

    @plain_torch()
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute what is asked for; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        wanted = [name for name in _ITS_OWN if self.always or name in properties]
        if not wanted:
            return
        graph = self.neighbours.graph(self.atoms, self.potential.species)
        if "energy_uncertainty" in wanted:
            self.results["energy_uncertainty"] = float(self.posterior.energy_uncertainty(graph)[0])
        if "forces_uncertainty" in wanted:
            self.results["forces_uncertainty"] = self.posterior.forces_uncertainty(graph)
