"""A potential as a model of torch-sim, which simulates many structures at once.

O. Cohen et al., "TorchSim: an efficient atomistic simulation engine in PyTorch", AI Sci. 1, 025003 (2025).
Needs ``pip install torch-sim-atomistic`` (tested with 0.3); importing this module without it is an :class:`InputError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pimlip_zoo.deploy.ase import SkinnedNeighbours
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, graph_to, stress_from_virial

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise InputError("torch-sim is not installed", hint="pip install torch-sim-atomistic") from error

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

__all__ = ["TorchSimModel"]


class TorchSimModel(ModelInterface):
    """Energies, forces and stresses of all structures of a torch-sim state in one evaluation.

    Neighbour lists are built by vesin on the CPU, with a skin, and used until an atom has moved half of it.

    Args:
        potential: ready for prediction.
        device: where to compute.
        dtype: of what is returned; the precision of the model is the potential's own.
        compute_stress: return stresses; NaN for a structure without a volume.
        skin: Å.
    """

    def __init__(
        self,
        potential: Potential,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        compute_stress: bool = True,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        if potential.model.electrons_are_open:
            raise InputError(
                "torch-sim states no charges",
                key="charge",
                hint="give potential.with_electrons(charge, multiplicity)",
            )
        self._device = torch.device(device)
        self._dtype = dtype
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"
        self.potential = potential.to(self._device).eval()
        self.skin = skin
        self._neighbours: list[SkinnedNeighbours] = []

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Evaluate a state.

        Args:
            state: a ``SimState``, or a mapping with its fields: positions (N, 3) Å, cell (M, 3, 3) with the
                lattice vectors as columns, pbc, atomic_numbers (N,), system_idx (N,).

        Returns:
            energy (M,) eV, forces (N, 3) eV/Å, energies (N,) eV, and stress (M, 3, 3) eV/Å³ where asked for.

        Raises:
            InputError: for an element that the potential does not know.
        """
        names = ("positions", "cell", "pbc", "atomic_numbers", "system_idx")
        given = state.get if isinstance(state, dict) else lambda name: getattr(state, name, None)
        graph = graph_to(self._graph({name: given(name) for name in names}), self._device)
        with torch.no_grad():
            predictions = self.potential(graph, forces=True, virial=self._compute_stress)
        results = {
            "energy": predictions.energy,
            "forces": predictions.forces,
            "energies": predictions.atomic_energy,
        }
        if self._compute_stress:
            results["stress"] = stress_from_virial(predictions.virial, graph.cell)
        return {name: value.to(self._dtype) for name, value in results.items()}

    def _graph(self, fields: dict[str, Any]) -> AtomGraph:
        """The structures of a state as one graph."""
        from ase import Atoms

        positions = fields["positions"].detach().cpu().to(torch.float64).numpy()
        cells = fields["cell"].detach().cpu().to(torch.float64).transpose(-1, -2).numpy()
        numbers = fields["atomic_numbers"].cpu().numpy()
        system = fields["system_idx"]
        system = np.zeros(len(positions), dtype=np.int64) if system is None else system.cpu().numpy()
        pbc = np.broadcast_to(torch.as_tensor(fields["pbc"]).cpu().numpy(), (3,))
        while len(self._neighbours) < len(cells):
            self._neighbours.append(SkinnedNeighbours(self.potential.cutoff, self.skin))
        graphs = []
        for index, cell in enumerate(cells):
            mine = system == index
            atoms = Atoms(numbers=numbers[mine], positions=positions[mine], cell=cell, pbc=pbc)
            graphs.append(self._neighbours[index].graph(atoms, self.potential.species))
        return _joined(graphs)


def _joined(graphs: list[AtomGraph]) -> AtomGraph:
    starts = np.cumsum([0, *(len(graph.positions) for graph in graphs)])
    return AtomGraph(
        positions=torch.cat([graph.positions for graph in graphs]),
        species=torch.cat([graph.species for graph in graphs]),
        edge_index=torch.cat(
            [g.edge_index + int(start) for g, start in zip(graphs, starts, strict=False)], dim=1
        ),
        edge_shift=torch.cat([graph.edge_shift for graph in graphs]),
        cell=torch.cat([graph.cell for graph in graphs]),
        batch=torch.cat([graph.batch + index for index, graph in enumerate(graphs)]),
        num_graphs=len(graphs),
    )
