"""What a model sees of an edge: its length in a radial basis, its direction in spherical harmonics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.compiled.kernels import EmbeddingForm, embed_edges
from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.embedding import CpuEmbedding, EmbeddingOperation, cpu_embedding
from pimlip_zoo.compiled.kernels.pairs import pair_up
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.radial import BesselBasis, PolynomialCutoff, XplorCutoff
from pimlip_zoo.nn.spherical import SphericalHarmonics


class EdgeEmbedding(ExactBuffers):
    """Bessel functions times a cutoff, and spherical harmonics, of every edge.

    An edge that is longer than the cutoff of its pair of species has radial functions that are exactly zero.

    Args:
        species: chemical symbols.
        cutoff: Å.
        l_max: highest degree of the harmonics.
        num_basis: radial functions B.
        trainable: learn their frequencies.
        prefactor: factor of the Bessel functions ``sin(n pi x) / x``, ``x = r / cutoff``.
        cutoff_order: p of the polynomial.
        species_cutoffs: (centre, neighbour, Å) of pairs with a shorter cutoff.
        transform: a module ``(lengths, graph) -> (E,)``, what the Bessel functions see instead of the length.
        frequencies: of the Bessel functions, see :class:`BesselBasis`.
        cutoff_onset: where the XPLOR cutoff begins, in units of the cutoff; None: the polynomial.
        solid: multiply the harmonics of degree l by ``r^l``.
    """

    def __init__(
        self,
        species: Sequence[str],
        *,
        cutoff: float,
        l_max: int,
        num_basis: int,
        trainable: bool = False,
        prefactor: float = 1.0,
        cutoff_order: float = 6.0,
        species_cutoffs: Sequence[tuple[str, str, float]] = (),
        transform: nn.Module | None = None,
        frequencies: Sequence[float] = (),
        cutoff_onset: float | None = None,
        solid: bool = False,
    ) -> None:
        super().__init__()
        self.transform, self.solid = transform, solid
        self.basis = BesselBasis(num_basis, trainable=trainable, prefactor=prefactor, frequencies=frequencies)
        self.envelope = PolynomialCutoff(cutoff_order) if cutoff_onset is None else XplorCutoff(cutoff_onset)
        self.harmonics = SphericalHarmonics(l_max)
        self.cutoff = float(cutoff)
        self.by_pair = len(species_cutoffs) > 0
        self.num_species = len(species)
        plain = not trainable and transform is None and cutoff_order == int(cutoff_order) and l_max >= 1
        plain = plain and all(k > 0 for k in frequencies)
        self.form = (
            EmbeddingForm(
                num_basis,
                prefactor,
                int(cutoff_order),
                self.harmonics.couplings(),
                tuple(float(k) for k in frequencies),
                cutoff_onset,
                solid,
            )
            if plain
            else None
        )
        table = pair_cutoffs(species, cutoff, species_cutoffs)
        self.register_buffer("inverse_cutoffs", table.reciprocal().reshape(-1), persistent=False)

    def forward(self, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Edge vectors (E, 3) -> radial functions (E, B), harmonics (E, (l_max + 1)²)."""
        # TorchScript parses type comments and takes this one only at the very end of its line.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.reference(vectors, graph)
        else:  # noqa: RET505
            return embed_edges(self, vectors, graph)

    def reference(self, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """The same in plain torch."""
        radial, envelope, harmonics = self.apart(vectors, graph)
        return radial * envelope, harmonics

    @torch.jit.export
    def apart(self, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor]:
        """Radial functions (E, B) without the cutoff, the cutoff (E, 1), harmonics."""
        length = torch.linalg.vector_norm(vectors, dim=1)
        x = self.reduced_length(length, graph)
        seen = x if self.transform is None else self.transform(length, graph) * (1.0 / self.cutoff)
        harmonics = self.harmonics(vectors if self.solid else vectors / length.unsqueeze(-1))
        return self.basis(seen), self.envelope(x).unsqueeze(-1), harmonics

    @torch.jit.export
    def reduced_length(self, length: Tensor, graph: AtomGraph) -> Tensor:
        """Lengths (E,) in Å over the cutoff of each edge's pair of species."""
        if self.by_pair:
            pair = graph.species[graph.edge_index[0]] * self.num_species + graph.species[graph.edge_index[1]]
            return length * self.inverse_cutoffs.to(length.dtype)[pair]  # type: ignore[index]
        return length * (1.0 / self.cutoff)


def pair_cutoffs(
    species: Sequence[str], cutoff: float, exceptions: Sequence[tuple[str, str, float]]
) -> Tensor:
    """(S, S) float64 table of cutoffs by (centre, neighbour).

    Args:
        species: chemical symbols.
        cutoff: Å, of all pairs without an exception.
        exceptions: (centre, neighbour, Å), ``*`` for any species; later ones win.

    Raises:
        InputError: for an unknown species, or a cutoff that is not in (0, cutoff].
    """
    table = torch.full((len(species), len(species)), float(cutoff), dtype=torch.float64)
    for centre, neighbour, value in exceptions:
        for symbol in (centre, neighbour):
            if symbol not in (*species, "*"):
                raise InputError(
                    f"a cutoff is given for {symbol}, which the model does not have",
                    key="species_cutoffs",
                    hint=did_you_mean(symbol, species),
                )
        if not 0 < value <= cutoff:
            raise InputError(
                f"the cutoff of {centre}-{neighbour} is {value}",
                key="species_cutoffs",
                hint=f"give a length in (0, {cutoff}] Å",
            )
        rows, columns = (
            slice(None) if symbol == "*" else list(species).index(symbol) for symbol in (centre, neighbour)
        )
        table[rows, columns] = float(value)
    return table


@blocks(EdgeEmbedding)
class EmbeddingBlock(OperationBlock):
    """(vectors, graph) -> (radial functions, harmonics); no parameters.

    Where all that is done with radial functions is done row by row until they weigh a sum over neighbours
    (``pairs.share_radial``), an edge and its opposite share them: there is a row for each pair, and their derivative
    is that by the first edge of each.
    """

    outputs = 2

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EdgeEmbedding = call.target
        if self.module.form is None or len(call.args) != 2:
            raise NotCovered
        self.form = self.module.form
        self.shared = None if self.module.by_pair else False

    @cached_property
    def kernels(self) -> CpuEmbedding:
        """Compiled when asked for."""
        return cpu_embedding(self.form, self.call.dtype)

    def bind(self, *args: Any) -> Bound:
        vectors, graph = args
        return EmbeddingOperation(self.kernels, self._inverse(vectors, graph)), (vectors,)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        (radial, harmonics), saved = super().forward(*args, **kwargs)
        first = self._first_edges(args[1]) if self.shared else None
        return (_of_pairs(radial, first), harmonics), (*saved, first)

    @staticmethod
    def _first_edges(graph: AtomGraph) -> Tensor | None:
        pairs = pair_up(edge_lists(graph.edge_index, len(graph.species)), graph.edge_shift)
        return None if pairs is None else pairs.first

    def _inverse(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """(E,) inverse cutoffs."""
        if not self.module.by_pair:
            return torch.full((vectors.shape[0],), 1.0 / self.module.cutoff, dtype=vectors.dtype)
        return self.module.reduced_length(vectors.new_ones(vectors.shape[0]), graph)

    def adjoint(self, saved: Any, g: Any) -> Tensors:
        (_, (vectors,), first), (radial, harmonics) = saved, g
        if first is not None:
            radial = radial.new_zeros((vectors.shape[0], radial.shape[1])).index_copy_(0, first, radial)
        return super().adjoint(saved, (radial, harmonics))

    def tangent(self, saved: Any, tangents: Tensors) -> Any:
        radial, harmonics = super().tangent(saved, tangents)
        return _of_pairs(radial, saved[2]), harmonics


def _of_pairs(radial: Tensor, first: Tensor | None) -> Tensor:
    """The rows of the first edge of each pair; all where there are no pairs."""
    return radial if first is None else radial.index_select(0, first)
