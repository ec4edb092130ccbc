"""A potential as a module of tensors in, tensors out: what the exported files hold."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple  # noqa: UP035 - TorchScript knows these names

import torch
from torch import Tensor, nn

from pimlip_zoo.graph import AtomGraph

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential


class PairStyleModule(nn.Module):
    """Energies, forces and virial of a potential under every pair style's contract; scriptable.

    Keys of the input choose the contract.

    ``edge_vectors``: ``pair_style pimlip``. With ``edge_vectors`` (E, 3) float64 in Å, ``edge_index``
    (2, E) sorted by centre, ``atom_types`` (N,) and ``is_local`` (N,) float64, 1 where an atom's energy
    counts. Returns ``atomic_energy`` (N, 1), ``edge_gradient`` (E, 3), the derivative of the local atoms'
    energy by the edge vectors, and ``forces`` (N, 3) where the potential has a direct force head.

    ``pos``: ``pair_style nequip`` (``pos`` of the local atoms, ``edge_index`` folded to them, ``cell`` and
    ``edge_cell_shift``) and ``allegro`` (``pos`` of local and ghost atoms), the present ones and those of
    before 2025. Returns ``atomic_energy`` (N, 1), ``total_energy`` (1, 1), ``forces`` (N, 3), ``virial``
    (1, 3, 3) and, where there is a cell, ``stress`` (1, 3, 3), NaN without a volume.

    The same with ``batch`` (N,), the structure of each atom, and ``num_atoms`` (M,): nequip's ASE calculator and its
    model for torch-sim. Totals, virials and stresses are those of M structures; ``cell`` is (M, 3, 3).

    All results are float64, in eV and Å.

    Args:
        potential: copied, not changed.
    """

    __constants__ = ("direct",)

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.scale: Tensor
        self.energy_references: Tensor
        self.model = copy.deepcopy(potential.model)
        self.repulsion = copy.deepcopy(potential.repulsion)
        self.register_buffer("scale", potential.scale.detach().clone())
        self.register_buffer("energy_references", potential.energy_references.detach().clone())
        self.direct = potential.is_direct
        self.depth = int(potential.model.interaction_depth)
        self.model_dtype = potential.model.dtype
        self.eval()
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, data: Dict[str, Tensor]) -> Dict[str, Tensor]:  # noqa: UP006
        """One evaluation; see the class for the keys.

        Raises:
            RuntimeError: for a message-passing model under a pair style that gives it strictly local
                neighbourhoods, or when the derivative is wanted where torch records nothing.
        """
        if "edge_vectors" in data:
            energy, gradient, forces = self.evaluate(
                data["edge_vectors"], data["edge_index"], data["atom_types"], data["is_local"]
            )
            result = {"atomic_energy": energy.unsqueeze(1), "edge_gradient": gradient}
            if forces is not None:
                result["forces"] = forces
            return result
        return self.evaluate_positions(data)

    def evaluate_positions(self, data: Dict[str, Tensor]) -> Dict[str, Tensor]:  # noqa: UP006
        """The contract of ``pair_style nequip`` and ``allegro``, and of nequip's interfaces in Python."""
        from_python = "batch" in data or "pbc" in data
        if self.depth > 1 and "edge_cell_shift" not in data and not from_python:
            raise RuntimeError(
                "this is a message-passing model, which pair_style allegro evaluates wrongly at the borders "
                "of a subdomain: use pair_style pimlip, or pair_style nequip on one rank"
            )
        species = data["atom_types"].reshape(-1)
        positions = data["pos"].to(torch.float64)
        structures = 1
        batch = torch.zeros_like(species)
        if "batch" in data:
            batch = data["batch"]
            structures = data["num_atoms"].shape[0]
        order = torch.argsort(data["edge_index"][0], stable=True)
        edge_index = data["edge_index"][:, order]
        centre, neighbour = edge_index[0], edge_index[1]
        vectors = positions[neighbour] - positions[centre]
        cell = torch.zeros((0, 3, 3), dtype=torch.float64, device=positions.device)
        if "cell" in data:
            cell = data["cell"].to(torch.float64).reshape(-1, 3, 3).expand(structures, 3, 3)
            if "edge_cell_shift" in data:
                shift = data["edge_cell_shift"][order].to(torch.float64)
                if structures == 1:
                    vectors = vectors + torch.mm(shift, cell[0])
                else:
                    vectors = vectors + torch.bmm(shift.unsqueeze(1), cell[batch[centre]]).squeeze(1)
        everyone = torch.ones(species.shape[0], dtype=torch.float64, device=species.device)
        energy, gradient, direct_forces = self.evaluate(vectors, edge_index, species, everyone)
        if direct_forces is not None:
            forces = direct_forces
        else:
            forces = (
                torch.zeros_like(positions).index_add(0, centre, gradient).index_add(0, neighbour, -gradient)
            )
        if structures == 1:
            total, virial = energy.sum().reshape(1, 1), -torch.mm(vectors.t(), gradient).unsqueeze(0)
        else:
            total = energy.new_zeros((structures, 1)).index_add(0, batch, energy.unsqueeze(1))
            virial = energy.new_zeros((structures, 3, 3)).index_add(
                0, batch[centre], -vectors.unsqueeze(2) * gradient.unsqueeze(1)
            )
        virial = 0.5 * (virial + virial.transpose(1, 2))
        result = {
            "atomic_energy": energy.unsqueeze(1),
            "total_energy": total,
            "forces": forces,
            "virial": virial,
        }
        if "cell" in data:
            volume = torch.linalg.det(cell).abs()
            none = torch.full_like(virial, float("nan"))
            result["stress"] = torch.where(
                volume.reshape(-1, 1, 1) > 0, -virial / volume.reshape(-1, 1, 1), none
            )
        return result

    def evaluate(
        self, vectors: Tensor, edge_index: Tensor, species: Tensor, is_local: Tensor
    ) -> Tuple[Tensor, Tensor, Optional[Tensor]]:  # noqa: UP006, UP045
        """Atomic energies (N,), edge gradients (E, 3) and, with a direct head, forces (N, 3)."""
        vectors = vectors.detach().requires_grad_(True)
        energy, forces = self.energies(vectors, edge_index, species)
        total = (energy * is_local).sum()
        gradient: Optional[Tensor] = None  # noqa: UP045
        if total.requires_grad:
            inputs: List[Tensor] = [vectors]  # noqa: UP006
            gradient = torch.autograd.grad([total], inputs, allow_unused=True)[0]
        elif not torch.is_grad_enabled():
            raise RuntimeError(
                "forces are derivatives: this module cannot run under no_grad or inference mode"
            )
        edge_gradient = torch.zeros_like(vectors) if gradient is None else gradient
        if forces is not None:
            forces = forces.detach()
        return energy.detach(), edge_gradient.detach(), forces

    def energies(
        self, vectors: Tensor, edge_index: Tensor, species: Tensor
    ) -> Tuple[Tensor, Optional[Tensor]]:  # noqa: UP006, UP045
        """The energies (N,) of :class:`Potential`, and direct forces where there is a head for them."""
        count = species.shape[0]
        graph = AtomGraph(
            positions=torch.zeros((count, 3), dtype=torch.float64, device=vectors.device),
            species=species,
            edge_index=edge_index,
            edge_shift=torch.zeros_like(vectors),
            cell=torch.zeros((1, 3, 3), dtype=torch.float64, device=vectors.device),
            batch=torch.zeros_like(species),
            num_graphs=1,
        )
        model_vectors = vectors.to(self.model_dtype)
        scale = self.scale[species]
        forces: Optional[Tensor] = None  # noqa: UP045
        if self.direct:
            raw, raw_forces = self.model.energies_and_forces(graph, model_vectors)
            forces = scale.unsqueeze(-1) * raw_forces.to(torch.float64)
        else:
            raw = self.model(graph, model_vectors)
        energy = scale * raw.to(torch.float64) + self.energy_references[species]
        if self.repulsion is not None:
            energy = energy + self.repulsion(graph, vectors)
        return energy, forces
