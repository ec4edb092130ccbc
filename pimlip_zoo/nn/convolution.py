"""The operation at the heart of message passing: neighbours' features times harmonics, summed at the centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from e3nn import o3
from torch import Tensor

from pimlip_zoo.nn.exact import ExactBuffers

__all__ = ["Convolution", "ConvolutionSpec", "convolution_spec"]


@dataclass(frozen=True)
class ConvolutionSpec:
    """What one convolution computes, independent of how.

    ``out[i, k, c] = sum over edges ij, paths p: w[ij, p, c] * sum_ab coefficient_p[a, b, k] x[j, a, c] Y[ij, b]``
    """

    irreps_in: o3.Irreps
    """Components of the features; each irrep once, without multiplicity."""
    irreps_edge: o3.Irreps
    """Components of the spherical harmonics."""
    paths: tuple[tuple[int, int, o3.Irrep], ...]
    """(index into irreps_in, index into irreps_edge, irrep of the output), one set of radial weights for each."""

    @cached_property
    def irreps_out(self) -> o3.Irreps:
        """Sorted, multiplicity = number of paths that end there; copies lie inside m (see ``irrep_slices``)."""
        return o3.Irreps([(1, irrep) for _, _, irrep in self.paths]).sort().irreps.simplify()

    @cached_property
    def terms(self) -> tuple[tuple[int, int, int, int, float], ...]:
        """All nonzero (path, component of x, component of Y, component of out, coefficient).

        The coefficients are e3nn's: ``sqrt(2 l_out + 1)`` times the Wigner 3j symbol in float64.
        """
        in_slices, edge_slices = self.irreps_in.slices(), self.irreps_edge.slices()
        first, copies = {}, {}
        start = 0
        for multiplicity, irrep in self.irreps_out:
            first[irrep], copies[irrep] = start, multiplicity
            start += multiplicity * irrep.dim
        seen: dict[o3.Irrep, int] = {}
        terms = []
        for path, (i, j, irrep) in enumerate(self.paths):
            copy = seen.get(irrep, 0)
            seen[irrep] = copy + 1
            l1, l2 = self.irreps_in[i].ir.l, self.irreps_edge[j].ir.l
            coupling = o3.wigner_3j(l1, l2, irrep.l, dtype=torch.float64) * irrep.dim**0.5
            for a, b, m in coupling.abs().gt(1e-12).nonzero().tolist():
                component = first[irrep] + m * copies[irrep] + copy
                terms.append(
                    (path, in_slices[i].start + a, edge_slices[j].start + b, component, float(coupling[a, b, m]))
                )
        return tuple(terms)


def convolution_spec(irreps_in: o3.Irreps, irreps_edge: o3.Irreps, targets: o3.Irreps) -> ConvolutionSpec:
    """All paths from features and harmonics to the irreps that are wanted, in the order of e3nn's loops."""
    irreps_in, irreps_edge = o3.Irreps(irreps_in), o3.Irreps(irreps_edge)
    wanted = {irrep for _, irrep in o3.Irreps(targets)}
    paths = tuple(
        (i, j, irrep)
        for i, (_, ir_in) in enumerate(irreps_in)
        for j, (_, ir_edge) in enumerate(irreps_edge)
        for irrep in ir_in * ir_edge
        if irrep in wanted
    )
    return ConvolutionSpec(irreps_in, irreps_edge, paths)


class Convolution(ExactBuffers):
    """Gather neighbours, tensor product with the harmonics ("uvu"), radial weights, sum at the centres.

    Args:
        spec: the paths.
    """

    def __init__(self, spec: ConvolutionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.irreps_out = spec.irreps_out
        self.num_paths = len(spec.paths)
        # x (x) Y -> one row per (path, m) with dense coefficients: two matrix products instead of a loop over paths.
        dims = [irrep.dim for _, _, irrep in spec.paths]
        starts = [sum(dims[:p]) for p in range(len(dims))]
        table = torch.zeros(spec.irreps_in.dim, spec.irreps_edge.dim, sum(dims), dtype=torch.float64)
        order = torch.zeros(sum(dims), dtype=torch.int64)
        for path, a, b, component, value in spec.terms:
            slot = starts[path] + self._m_of(component)
            table[a, b, slot] = value
            order[component] = slot
        self.register_buffer("_table", table, persistent=False)
        self.register_buffer("_order", order, persistent=False)
        path_of_slot = [path for path, dim in enumerate(dims) for _ in range(dim)]
        self.register_buffer("_path", torch.tensor(path_of_slot, dtype=torch.int64), persistent=False)

    def _m_of(self, component: int) -> int:
        start = 0
        for copies, irrep in self.irreps_out:
            if component < start + copies * irrep.dim:
                return (component - start) // copies
            start += copies * irrep.dim
        raise IndexError(component)

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (N, K_in, C) features.
            harmonics: (E, K_edge).
            weights: (E, P, C) radial weights.
            edge_index: (2, E) centre and neighbour, sorted by centre.

        Returns:
            (N, K_out, C).
        """
        atoms, _, channels = x.shape
        coupling = torch.einsum("eb,abk->eka", harmonics, self._table.to(x.dtype))
        messages = torch.bmm(coupling, x[edge_index[1]]) * weights[:, self._path]
        sums = torch.zeros((atoms, messages.shape[1], channels), dtype=x.dtype, device=x.device)
        return sums.index_add(0, edge_index[0], messages)[:, self._order]
