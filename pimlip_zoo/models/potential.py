"""An architecture made a potential: energies with references, forces, virial."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import compiled_for, geometry_is_leaf, geometry_only
from pimlip_zoo.compiled.sweeps import (
    Levels,
    Sweeps,
    compile_ahead,
    predict_structures,
    sweeps_of,
    virial_of_edges,
)
from pimlip_zoo.consistency.mixin import PhysicsWeakMixin
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, Predictions, edge_vectors, sum_by_structure
from pimlip_zoo.models.base import AtomicEnergyModel


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
        """Change the precision of the model; references and scale stay float64.

        Raises:
            InputError: where a weight is too large for it; nothing is changed then.
        """
        largest = torch.finfo(dtype).max
        for name, weight in self.model.named_parameters():
            if (
                weight.dtype.itemsize > dtype.itemsize
                and weight.numel()
                and float(weight.detach().abs().max()) > largest
            ):
                raise InputError(
                    f"a weight is larger than {dtype} holds", key=name, hint="keep its precision"
                )
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
        if torch.is_inference_mode_enabled():  # which forbids derivatives
            with torch.inference_mode(mode=False), torch.no_grad():
                return self(_ordinary(graph), forces=forces, virial=virial)
        if self.model.electrons_are_open:
            if graph.electrons is None:
                graph = graph._replace(electrons=graph.cell.new_zeros((graph.num_graphs, 2)))
            self.model.check_electrons(graph)
        sweeps = self._sweeps(graph)
        if sweeps is None:
            return self._by_autograd(graph, forces=forces, virial=virial)
        levels = self._levels(graph, differentiate=forces or virial)
        return predict_structures(sweeps, graph, levels, self.model.dtype, forces=forces, virial=virial)

    def _by_autograd(self, graph: AtomGraph, *, forces: bool, virial: bool) -> Predictions:
        differentiate = virial or (forces and not self.is_direct)
        keep = torch.is_grad_enabled()
        vectors = edge_vectors(graph)
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
        empty = graph.positions.new_zeros((0, 3, 3))
        all_virial = virial_of_edges(graph, vectors, gradient) if virial else empty
        result = Predictions(energy, all_forces, all_virial, atomic_energy)
        return result if keep else Predictions(*(value.detach() for value in result))

    def edge_gradient(self, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Edge vectors (E, 3) in Å and the derivative (E, 3) of the total energy by them, in eV/Å; both constants."""
        with torch.enable_grad():
            vectors = edge_vectors(graph).detach().requires_grad_(True)
            atomic_energy, _ = self._atomic_energy(graph, vectors, direct=False)
            gradient = self._edge_gradient(atomic_energy.sum(), vectors, keep=False)
        return vectors.detach(), gradient.detach()

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

    def with_electrons(self, charge: int, multiplicity: int = 1) -> Potential:
        """A copy for one charge and multiplicity, given once for all structures, as deployed models need it.

        Raises:
            InputError: when the model does not embed them.
        """
        if not self.model.electrons_are_open:
            raise InputError(
                "the model does not know charge and multiplicity",
                key="charge",
                hint="leave them out, or train with model.embed_charge=true",
            )
        if multiplicity < 1:
            raise InputError(f"it is {multiplicity}", key="multiplicity", hint="give 2S + 1, at least 1")
        fixed: Potential = copy.deepcopy(self)
        fixed.model.fix_electrons(charge, multiplicity)
        return fixed

    def compile_ahead(self) -> None:
        """Begin to compile, in the background, what training this potential on the CPU needs; it returns at once."""
        if not self.is_direct and compiled_for(torch.empty(0, dtype=self.model.dtype)):
            compile_ahead(self.model, self.model.dtype)

    def _sweeps(self, graph: AtomGraph) -> Sweeps | None:
        """The model's sweeps, where they do all that may be asked: derivatives by geometry and by its parameters."""
        if self.is_direct or torch.is_autocast_enabled(graph.positions.device.type):
            return None  # products in bf16 are autograd's
        if torch.is_grad_enabled():
            constants = [graph.positions, graph.edge_shift, graph.cell, self.scale, self.energy_references]
            if self.repulsion is not None:
                constants += self.repulsion.parameters()
            if any(t.requires_grad for t in constants):
                return None
        dtype = self.model.dtype
        known = dtype in (torch.float32, torch.float64) and compiled_for(graph.positions)
        return sweeps_of(self.model, dtype) if known else None

    def _levels(self, graph: AtomGraph, *, differentiate: bool) -> Levels:
        """What is made of the model's energies, in eV."""
        scale = self.scale.detach().index_select(0, graph.species)
        offset, gradient = self.energy_references.detach().index_select(0, graph.species), None
        if self.repulsion is not None:
            with torch.enable_grad():
                leaf = edge_vectors(graph).detach().requires_grad_()
                repulsion = self.repulsion(graph, leaf)
                if differentiate:
                    gradient = self._edge_gradient(repulsion.sum(), leaf, keep=False)
            offset = offset + repulsion.detach()
        return Levels(scale, offset, gradient)

    @staticmethod
    def _edge_gradient(energy: Tensor, vectors: Tensor, keep: bool) -> Tensor:
        if not energy.requires_grad:
            return torch.zeros_like(vectors)
        with geometry_only():
            (gradient,) = torch.autograd.grad(energy, vectors, create_graph=keep, allow_unused=True)
        return torch.zeros_like(vectors) if gradient is None else gradient


def _ordinary(graph: AtomGraph) -> AtomGraph:
    """The graph without tensors that were made in inference mode."""
    return AtomGraph(
        *(value.clone() if isinstance(value, Tensor) and value.is_inference() else value for value in graph)  # type: ignore[arg-type]
    )
