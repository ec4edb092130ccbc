"""A potential as an ASE calculator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from numpy.typing import NDArray

from pimlip_zoo.datasets.neighbours import neighbour_list, species_indices
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, edge_vectors, graph_to, stress_from_virial
from pimlip_zoo.models.potential import Potential

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

__all__ = ["PimlipCalculator", "SkinnedNeighbours"]


class SkinnedNeighbours:
    """Neighbour lists that are built with a skin and used until an atom has moved half of it.

    Args:
        cutoff: Å.
        skin: Å; 0 builds a list every time.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if not skin >= 0:
            raise InputError(f"the skin is {skin}", key="skin", mend="give a length >= 0 in Å")
        self.cutoff, self.skin = cutoff, skin
        self.builds = 0
        """How many lists were built."""
        self._key: tuple[Any, ...] | None = None
        self._positions: NDArray[np.float64] = np.zeros((0, 3))
        self._list: tuple[NDArray[np.int64], NDArray[np.float64]] = (
            np.zeros((2, 0), np.int64),
            np.zeros((0, 3)),
        )

    def graph(self, atoms: Atoms, species: Sequence[str]) -> AtomGraph:
        """The graph of a structure, edges within the cutoff.

        Raises:
            InputError: for positions or a cell that are not finite, or an element that the species lack.
        """
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise InputError("a position or the cell is NaN or infinite", key="positions")
        key = (
            len(atoms),
            atoms.numbers.tobytes(),
            atoms.cell.array.tobytes(),
            np.asarray(atoms.pbc, dtype=bool).tobytes(),
        )
        if key != self._key or self._moved(atoms.positions):
            self._list = neighbour_list(atoms.positions, atoms.cell.array, atoms.pbc, self.cutoff + self.skin)
            self._key, self._positions = key, atoms.positions.copy()
            self.builds += 1
        graph = AtomGraph(
            positions=torch.as_tensor(atoms.positions.astype(np.float64)),
            species=torch.as_tensor(species_indices(atoms.numbers, species)),
            edge_index=torch.as_tensor(self._list[0]),
            edge_shift=torch.as_tensor(self._list[1]),
            cell=torch.as_tensor(np.array(atoms.cell.array, dtype=np.float64)).reshape(1, 3, 3),
            batch=torch.zeros(len(atoms), dtype=torch.int64),
            num_graphs=1,
        )
        if self.skin == 0:
            return graph
        near = edge_vectors(graph).square().sum(dim=1) < self.cutoff**2
        return graph._replace(edge_index=graph.edge_index[:, near], edge_shift=graph.edge_shift[near])

    def _moved(self, positions: NDArray[np.float64]) -> bool:
        if not len(positions):
            return False
        distance = np.square(positions - self._positions).sum(axis=1).max()
        return bool(distance > (0.5 * self.skin) ** 2)


class PimlipCalculator(Calculator):
    """Energy, atomic energies, forces and stress of a potential, in ASE's units (eV, Å).

    Args:
        potential: ready for prediction.
        skin: Å, how far neighbour lists reach beyond the cutoff, to be used again in molecular dynamics.
        device: where to compute.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(
        self, potential: Potential, *, skin: float = 0.5, device: str | torch.device = "cpu", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.device = torch.device(device)
        self.potential = potential.to(self.device).eval()
        self.neighbours = SkinnedNeighbours(potential.cutoff, skin)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute what is asked for; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        structure = self.atoms
        graph = graph_to(self.neighbours.graph(structure, self.potential.species), self.device)
        # The virial comes with conservative forces at no cost, so that a barostat needs one evaluation a step.
        stress = abs(np.linalg.det(structure.cell.array)) > 0 and (
            "stress" in properties or not self.potential.is_direct
        )
        with torch.no_grad():
            predictions = self.potential(graph, forces=True, virial=stress)
        energy = float(predictions.energy)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": predictions.atomic_energy.cpu().numpy(),
            "forces": predictions.forces.cpu().numpy(),
        }
        if stress:
            tensor = stress_from_virial(predictions.virial, graph.cell)[0].cpu().numpy()
            self.results["stress"] = tensor.reshape(9)[[0, 4, 8, 5, 2, 1]]
