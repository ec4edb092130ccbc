"""An architecture made a potential: energies with references, forces, virial."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Predictions, edge_vectors, sum_by_structure
from pimlip_zoo.models.base import AtomicEnergyModel
from pimlip_zoo.models.weak import PhysicsWeakMixin
from pimlip_zoo.nn.kernels import compiled_for, geometry_is_leaf, geometry_only
from pimlip_zoo.nn.sweeps import Sweeps, compile_ahead, energies_and_gradient, sweeps_of

__all__ = ["Potential"]


class Potential(PhysicsWeakMixin, nn.Module):
    """Wraps any :class:`AtomicEnergyModel`: total energies, forces, virial; references and scale.

    ``E = sum_i [ scale(s_i) * model_i + E0(s_i) + repulsion_i ]``, the sum in float64. Geometry enters through the
    edge vectors ``r_ij`` alone, so that one derivative ``g_ij = dE/dr_ij`` gives the forces,
    ``F_i = sum_j (g_ij - g_ji)``, and the virial, ``W = -sum_ij r_ij (x) g_ij``.

    Args:
        model: the architecture.
        energy_references: (S,) eV, energy of an atom of each species apart; zero where none is known.
        scale: (S,) or a number, eV, multiplies what the model returns.
        repulsion: a module ``(graph, vectors) -> (N,)`` in eV that is added, such as ZBL.
        trainable_scale: learn the scale and the energy references, too.

    Raises:
        InputError: when references or scale do not fit the model's species.
    """

    def __init__(
        self,
        model: AtomicEnergyModel,
        *,
        energy_references: Tensor | None = None,
        scale: Tensor | float = 1.0,
        repulsion: nn.Module | None = None,
        trainable_scale: bool = False,
    ) -> None:
        super().__init__()
        count = len(model.species)
        self.model = model
        self.repulsion = repulsion
        references = (
            torch.zeros(count, dtype=torch.float64)
            if energy_references is None
            else torch.as_tensor(energy_references, dtype=torch.float64).clone()
        )
        scales = torch.as_tensor(scale, dtype=torch.float64).expand(count).clone()
        if references.shape != (count,):
            raise InputError(
                f"{references.numel()} energy references for {count} species", key="energy_references"
            )
        self.energy_references = nn.Parameter(references, requires_grad=trainable_scale)
        self.scale = nn.Parameter(scales, requires_grad=trainable_scale)

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols; ``graph.species`` holds indices into them."""
        return self.model.species

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.model.cutoff

    @property
    def is_direct(self) -> bool:
        """Whether forces come from a head of their own and not from the energy."""
        return self.model.config.force_head == "direct"

    def set_dtype(self, dtype: torch.dtype) -> Potential:
        """Change the precision of the model; references and scale stay float64."""
        self.model.to(dtype)
        return self

    def forward(self, graph: AtomGraph, *, forces: bool = True, virial: bool = True) -> Predictions:
        """Predict the structures of a graph.

        The derivative can be differentiated again when gradients are enabled where this is called; under
        ``torch.no_grad()`` nothing is kept.

        Args:
            graph: the structures; edges longer than the cutoff change nothing.
            forces: compute forces.
            virial: compute the virial.

        Returns:
            Predictions, empty where a quantity was not asked for.
        """
        differentiate = virial or (forces and not self.is_direct)
        keep = torch.is_grad_enabled()
        vectors = edge_vectors(graph)
        sweeps = self._sweeps(vectors)
        if sweeps is not None:
            atomic_energy, gradient = self._by_sweeps(sweeps, graph, vectors, differentiate=differentiate)
            direct_forces = vectors
        else:
            with torch.set_grad_enabled(keep or differentiate):
                inner = differentiate and not vectors.requires_grad
                if inner:
                    vectors.requires_grad_(True)
                with geometry_is_leaf(inner):
                    atomic_energy, direct_forces = self._atomic_energy(graph, vectors, direct=forces)
                energy = atomic_energy.sum()
                gradient = self._edge_gradient(energy, vectors, keep) if differentiate else vectors
        energy = sum_by_structure(atomic_energy, graph)
        if not forces:
            all_forces = graph.positions.new_zeros((0, 3))
        elif self.is_direct:
            all_forces = direct_forces
        else:
            centre, neighbour = graph.edge_index[0], graph.edge_index[1]
            all_forces = torch.zeros_like(graph.positions, requires_grad=False)
            all_forces = all_forces.index_add(0, centre, gradient).index_add(0, neighbour, -gradient)
        all_virial = _virial(graph, vectors, gradient) if virial else graph.positions.new_zeros((0, 3, 3))
        result = Predictions(energy, all_forces, all_virial, atomic_energy)
        return result if keep else Predictions(*(value.detach() for value in result))

    def _atomic_energy(self, graph: AtomGraph, vectors: Tensor, *, direct: bool) -> tuple[Tensor, Tensor]:
        model_vectors = vectors.to(self.model.dtype)
        scale = self.scale[graph.species]
        forces = vectors
        if direct and self.is_direct:
            raw, raw_forces = self.model.energies_and_forces(graph, model_vectors)
            forces = scale.unsqueeze(-1) * raw_forces.to(torch.float64)
        else:
            raw = self.model(graph, model_vectors)
        energy = scale * raw.to(torch.float64) + self.energy_references[graph.species]
        if self.repulsion is not None:
            energy = energy + self.repulsion(graph, vectors)
        return energy, forces

    def compile_ahead(self) -> None:
        """Begin to compile, in the background, what training this potential on the CPU needs; it returns at once."""
        if not self.is_direct and compiled_for(torch.empty(0, dtype=self.model.dtype)):
            compile_ahead(self.model, self.model.dtype)

    def _sweeps(self, vectors: Tensor) -> Sweeps | None:
        """The model's sweeps, where they do all that may be asked: derivatives by geometry and by its parameters."""
        trains_more = self.scale.requires_grad or self.energy_references.requires_grad
        if self.repulsion is not None:
            trains_more = trains_more or any(p.requires_grad for p in self.repulsion.parameters())
        if self.is_direct or vectors.requires_grad or (trains_more and torch.is_grad_enabled()):
            return None
        if torch.is_autocast_enabled(vectors.device.type):  # products in bf16 are autograd's
            return None
        dtype = self.model.dtype
        return sweeps_of(self.model, dtype) if compiled_for(vectors.to(dtype)) else None

    def _by_sweeps(
        self, sweeps: Sweeps, graph: AtomGraph, vectors: Tensor, *, differentiate: bool
    ) -> tuple[Tensor, Tensor]:
        """Atomic energies in eV and the gradient of their sum by the edge vectors."""
        dtype = self.model.dtype
        scale = self.scale.detach()[graph.species]
        raw, raw_gradient = energies_and_gradient(
            sweeps, graph, vectors.to(dtype), scale.to(dtype), gradient=differentiate
        )
        energy = scale * raw.to(torch.float64) + self.energy_references.detach()[graph.species]
        gradient = raw_gradient.to(torch.float64)
        if self.repulsion is not None:
            with torch.enable_grad():
                leaf = vectors.detach().requires_grad_()
                repulsion = self.repulsion(graph, leaf)
                if differentiate:
                    gradient = gradient + self._edge_gradient(repulsion.sum(), leaf, keep=False)
            energy = energy + repulsion.detach()
        return energy, gradient

    @staticmethod
    def _edge_gradient(energy: Tensor, vectors: Tensor, keep: bool) -> Tensor:
        if not energy.requires_grad:
            return torch.zeros_like(vectors)
        with geometry_only():
            (gradient,) = torch.autograd.grad(energy, vectors, create_graph=keep, allow_unused=True)
        return torch.zeros_like(vectors) if gradient is None else gradient


def _virial(graph: AtomGraph, vectors: Tensor, gradient: Tensor) -> Tensor:
    """``-sum r (x) dE/dr`` over the edges of each structure, symmetric: (M, 3, 3) eV."""
    products = vectors.unsqueeze(2) * gradient.unsqueeze(1)
    total = products.new_zeros((graph.num_graphs, 3, 3))
    total = total.index_add(0, graph.batch[graph.edge_index[0]], products)
    return -0.5 * (total + total.transpose(1, 2))
