"""A potential as an ASE calculator."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes

from pimlip_zoo.compiled.kernels import one_thread_after_fork, plain_torch
from pimlip_zoo.datasets.electrons import electrons_of_atoms
from pimlip_zoo.datasets.neighbour_list import species_indices
from pimlip_zoo.datasets.unseen import UnseenElectrons
from pimlip_zoo.deploy.properties import VOIGT, numbers_of, stresses_of_atoms
from pimlip_zoo.deploy.skin import SkinnedPairs, check_result
from pimlip_zoo.deploy.turns import InTurns, Turns
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, edge_vectors, graph_to, stress_from_virial
from pimlip_zoo.models.potential import Potential

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ase import Atoms


class SkinnedNeighbours(SkinnedPairs):
    """:class:`SkinnedPairs` as the graphs that models take."""

    electrons = False
    """Whether graphs carry the charge and the multiplicity that the atoms state."""
    given: Mapping[str, int] = MappingProxyType({})
    """Charge and multiplicity that count more than what the atoms state."""

    def graph(self, atoms: Atoms, species: Sequence[str]) -> AtomGraph:
        """The graph of a structure, edges within the cutoff.

        Raises:
            InputError: for positions or a cell that are not finite, or an element that the species lack.
        """
        edge_index, edge_shift = self.pairs(atoms)
        electrons = None
        if self.electrons:
            found = electrons_of_atoms(atoms, self.given)
            electrons = torch.tensor([[found.charge, found.multiplicity - 1]], dtype=torch.float64)
        graph = AtomGraph(
            positions=torch.as_tensor(atoms.positions.astype(np.float64)),
            species=torch.as_tensor(species_indices(atoms.numbers, species)),
            edge_index=torch.as_tensor(edge_index),
            edge_shift=torch.as_tensor(edge_shift),
            cell=torch.as_tensor(np.array(atoms.cell.array, dtype=np.float64)).reshape(1, 3, 3),
            batch=torch.zeros(len(atoms), dtype=torch.int64),
            num_graphs=1,
            electrons=electrons,
        )
        if self.skin == 0:
            return graph
        near = edge_vectors(graph).square().sum(dim=1) < self.cutoff**2
        return graph._replace(edge_index=graph.edge_index[:, near], edge_shift=graph.edge_shift[near])


def check_device(device: str | torch.device, *, key: str = "device") -> None:
    """Refuse a device that PyTorch does not have here.

    Args:
        device: cpu, cuda, cuda:1, ...
        key: of the option, for the message.

    Raises:
        InputError: for one that cannot be used.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"{str(device)!r} cannot be used: {reason}", key=key, hint="give cpu") from error


class PimlipCalculator(InTurns, Calculator):
    """Energy, atomic energies, forces and stress of a potential, in ASE's units (eV, Å).

    A charge or multiplicity that a structure states to a model that does not see them is said once, as a warning of
    the logger ``pimlip_zoo``.

    Args:
        potential: ready for prediction.
        skin: Å, how far neighbour lists reach beyond the cutoff, to be used again in molecular dynamics.
        device: where to compute.
        charge: of every structure; None: each states its own, in ``info`` or as initial charges (else neutral).
        multiplicity: of every structure, 2S + 1, beside ``charge``; None: each its own, or the lowest.

    Raises:
        InputError: for a charge or multiplicity where the model does not embed them.
    """

    implemented_properties: ClassVar[list[str]] = [
        *("energy", "free_energy", "energies", "forces"),
        *("stress", "stresses"),  # where the cell has a volume
    ]

    def __init__(
        self,
        potential: Potential,
        *,
        skin: float = 0.5,
        device: str | torch.device = "cpu",
        charge: int | None = None,
        multiplicity: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.turns = Turns()
        given = {"charge": charge, "multiplicity": multiplicity}
        self.electrons = {key: value for key, value in given.items() if value is not None}
        if self.electrons and not potential.model.electrons_are_open:
            raise InputError(
                "the model does not know charge and multiplicity",
                key=min(self.electrons),
                hint="leave it out, or train with model.embed_charge=true",
            )
        self.device = torch.device(device)
        self.potential = potential.to(self.device).eval()
        self.neighbours = SkinnedNeighbours(potential.cutoff, skin)
        self.neighbours.electrons = potential.model.electrons_are_open
        self.neighbours.given = self.electrons
        self.unseen = UnseenElectrons(potential.model.fixed_electrons())

    @property
    def allowed_atomic_numbers(self) -> set[int]:
        """Of the elements that the potential knows."""
        return numbers_of(self.potential.species)

    @property
    def sees_electrons(self) -> bool:
        """Whether charge and multiplicity of a structure enter."""
        return self.neighbours.electrons

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last evaluation; ASE does not look at what ``info`` states."""
        changes: list[str] = super().check_state(atoms, tol)
        if not self.neighbours.electrons:
            self.unseen.look(atoms)
        if self.neighbours.electrons and self.atoms is not None:
            before, now = (electrons_of_atoms(each, self.electrons) for each in (self.atoms, atoms))
            if before != now:
                changes.append("initial_charges")
        return changes

    @plain_torch()
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
        volume = abs(np.linalg.det(structure.cell.array))
        stress = volume > 0 and ("stress" in properties or not self.potential.is_direct)
        one_thread_after_fork()
        with torch.no_grad():
            predictions = self.potential(graph, forces=True, virial=stress)
        energy, forces = float(predictions.energy), predictions.forces.cpu().numpy()
        check_result(energy, forces, structure)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": predictions.atomic_energy.cpu().numpy(),
            "forces": forces,
        }
        if stress:
            tensor = stress_from_virial(predictions.virial, graph.cell)[0].cpu().numpy()
            self.results["stress"] = tensor.reshape(9)[VOIGT]
        if volume > 0 and "stresses" in properties:
            parts = (*self.potential.edge_gradient(graph), graph.edge_index)
            vectors, gradient, edge_index = (part.cpu().numpy() for part in parts)
            self.results["stresses"] = stresses_of_atoms(
                vectors, gradient, edge_index, len(structure), volume
            )
