"""A potential as a model of torch-sim, which simulates many structures at once.

O. Cohen et al., "TorchSim: an efficient atomistic simulation engine in PyTorch", AI Sci. 1, 025003 (2025).
Needs ``pip install torch-sim-atomistic`` (tested with 0.3); importing this module without it is an :class:`InputError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels import plain_torch
from pimlip_zoo.datasets.indices import whole_numbers
from pimlip_zoo.deploy.ase import SkinnedNeighbours
from pimlip_zoo.deploy.skin import check_result
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import graph_to, join, stress_from_virial

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise InputError("torch-sim is not installed", hint="pip install torch-sim-atomistic") from error

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from pimlip_zoo.models.potential import Potential


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

    @plain_torch()
    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Evaluate a state.

        Args:
            state: a ``SimState``, or a mapping with its fields: positions (N, 3) Å, cell (M, 3, 3) with the
                lattice vectors as columns, pbc, atomic_numbers (N,), system_idx (N,).

        Returns:
            energy (M,) eV, forces (N, 3) eV/Å, energies (N,) eV, and stress (M, 3, 3) eV/Å³ where asked for.

        Raises:
            InputError: for an element that the potential does not know, fields that do not fit each other, and
                structures whose energy is no number.
        """
        names = ("positions", "cell", "pbc", "atomic_numbers", "system_idx")
        given = state.get if isinstance(state, dict) else lambda name: getattr(state, name, None)
        structures, order = self._structures({name: given(name) for name in names})
        graphs = [
            self._neighbours[index].graph(atoms, self.potential.species)
            for index, atoms in enumerate(structures)
        ]
        graph = graph_to(join(graphs), self._device)
        with torch.no_grad():
            predictions = self.potential(graph, forces=True, virial=self._compute_stress)
        if not (torch.isfinite(predictions.energy).all() and torch.isfinite(predictions.forces).all()):
            self._name_odd(structures, predictions.energy, predictions.forces)
        back = torch.as_tensor(np.argsort(order, kind="stable"), device=self._device)
        results = {
            "energy": predictions.energy,
            "forces": predictions.forces[back],
            "energies": predictions.atomic_energy[back],
        }
        if self._compute_stress:
            results["stress"] = stress_from_virial(predictions.virial, graph.cell)
        return {name: value.to(self._dtype) for name, value in results.items()}

    def _structures(self, fields: dict[str, Any]) -> tuple[list[Atoms], NDArray[np.int64]]:
        """The structures of a state, and which of its atoms theirs are, one structure after the other."""
        from ase import Atoms

        for name in ("positions", "cell", "pbc", "atomic_numbers"):
            if fields[name] is None:
                raise InputError("is missing in the state", key=name)
        positions = fields["positions"].detach().cpu().to(torch.float64).numpy()
        cells = fields["cell"].detach().cpu().to(torch.float64).reshape(-1, 3, 3).mT.numpy()
        count = len(positions)
        numbers = whole_numbers(fields["atomic_numbers"].cpu().numpy(), "atomic number", key="atomic_numbers")
        system = fields["system_idx"]
        system = (
            np.zeros(count, dtype=np.int64)
            if system is None
            else whole_numbers(system.cpu().numpy(), "number of a system", key="system_idx")
        )
        if not len(numbers) == len(system) == count:
            raise InputError(
                f"{count} positions, {len(numbers)} atomic numbers, {len(system)} of system_idx",
                key="positions",
            )
        if count and not 0 <= system.min() <= system.max() < len(cells):
            raise InputError(f"names systems beyond the {len(cells)} that have cells", key="system_idx")
        pbc = torch.as_tensor(fields["pbc"]).cpu().numpy()
        if pbc.shape not in ((), (1,), (3,)):
            raise InputError(f"has the shape {pbc.shape}, expected three truth values", key="pbc")
        pbc = np.broadcast_to(pbc, (3,))
        while len(self._neighbours) < len(cells):
            self._neighbours.append(SkinnedNeighbours(self.potential.cutoff, self.skin))
        order = np.argsort(system, kind="stable")
        parts = np.split(order, np.searchsorted(system[order], np.arange(1, len(cells))))
        structures = [
            Atoms(numbers=numbers[mine], positions=positions[mine], cell=cell, pbc=pbc)
            for mine, cell in zip(parts, cells, strict=True)
        ]
        return structures, order

    def _name_odd(self, structures: list[Atoms], energy: Tensor, forces: Tensor) -> None:
        """Say which structure has an energy or forces that are no numbers."""
        per_atom = torch.split(forces.cpu(), [len(atoms) for atoms in structures])
        for index, atoms in enumerate(structures):
            try:
                check_result(float(energy[index]), per_atom[index].numpy(), atoms)
            except InputError as error:
                raise error.at(file=f"system {index}") from error
