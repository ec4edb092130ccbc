"""The operation at the heart of message passing: features times harmonics, summed over neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import TrilinearForm, convolve, reference_convolution
from pimlip_zoo.compiled.kernels.convolution.cpu import cpu_convolution
from pimlip_zoo.compiled.kernels.convolution.operation import ConvolutionOperation
from pimlip_zoo.compiled.kernels.edges import EdgeLists, edge_lists
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock


@dataclass(frozen=True)
class ConvolutionSpec:
    """What one convolution computes, independent of how.

    ``out[i, k, c] = sum_jp w[ij, p, c] sum_ab coefficient_p[a, b, k] x[j, a, c] Y[ij, b]``
    """

    irreps_in: o3.Irreps
    """Components of the features, each irrep once. A multiplicity multiplies the channels: features have a row for
    each component and copy, copies inside m (see ``irrep_slices``), and paths are as wide as what they read."""
    irreps_edge: o3.Irreps
    """Components of the spherical harmonics."""
    paths: tuple[tuple[int, int, o3.Irrep], ...]
    """(index into irreps_in, index into irreps_edge, irrep of the output); each has its radial weights."""

    @cached_property
    def irreps_out(self) -> o3.Irreps:
        """Sorted, multiplicity = rows of all paths ending there; copies lie inside m (see ``irrep_slices``)."""
        return o3.Irreps([(self._width(i), irrep) for i, _, irrep in self.paths]).sort().irreps.simplify()

    def _width(self, index: int) -> int:
        return int(self.irreps_in[index].mul)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of each component of the features, as ``TrilinearForm`` has them; empty where all are one."""
        found = tuple(int(n) for n, irrep in self.irreps_in for _ in range(irrep.dim))
        return () if set(found) == {1} else found

    @property
    def num_weights(self) -> int:
        """Radial weights, in multiples of the channels."""
        return sum(self._width(i) for i, _, _ in self.paths)

    @cached_property
    def terms(self) -> tuple[tuple[int, int, int, int, float], ...]:
        """All nonzero (path, component of x, component of Y, component of out, coefficient).

        The coefficients are e3nn's: ``sqrt(2 l_out + 1)`` times the Wigner 3j symbol in float64. Components are
        counted without multiplicities, those of the result one for each path and m.
        """
        in_slices = o3.Irreps([(1, irrep) for _, irrep in self.irreps_in]).slices()
        edge_slices = self.irreps_edge.slices()
        first, copies = {}, {}
        start = 0
        for _, irrep in self.irreps_out:
            first[irrep] = start
            copies[irrep] = sum(ending == irrep for _, _, ending in self.paths)
            start += copies[irrep] * irrep.dim
        seen: dict[o3.Irrep, int] = {}
        terms = []
        for path, (i, j, irrep) in enumerate(self.paths):
            copy = seen.get(irrep, 0)
            seen[irrep] = copy + 1
            l1, l2 = self.irreps_in[i].ir.l, self.irreps_edge[j].ir.l
            coupling = o3.wigner_3j(l1, l2, irrep.l, dtype=torch.float64) * irrep.dim**0.5
            for a, b, m in coupling.abs().gt(1e-12).nonzero().tolist():
                component = first[irrep] + m * copies[irrep] + copy
                value = float(coupling[a, b, m])
                terms.append((path, in_slices[i].start + a, edge_slices[j].start + b, component, value))
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


class Convolution(nn.Module):
    """Gather neighbours, tensor product with the harmonics ("uvu"), radial weights, sum at the centres.

    Computed by the backend that ``compiled.kernels`` selects; in plain torch when scripted.

    Args:
        spec: the paths.
        channels: C, for which kernels are made ahead of the first call; None: when it is called.
    """

    def __init__(self, spec: ConvolutionSpec, channels: int | None = None) -> None:
        super().__init__()
        self.spec, self.channels = spec, channels
        self.irreps_out = spec.irreps_out
        self.num_paths, self.num_weights = len(spec.paths), spec.num_weights
        components = sum(irrep.dim for _, irrep in spec.irreps_in)
        results = sum(irrep.dim for _, _, irrep in spec.paths)
        self.form = TrilinearForm(
            components, spec.irreps_edge.dim, results, self.num_paths, spec.terms, spec.widths
        )
        self.reference = reference_convolution(self.form)

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (N, K_in, C) features.
            harmonics: (E, K_edge).
            weights: (E, P, C) radial weights, with multiplicities (E, num_weights, C).
            edge_index: (2, E) centre and neighbour, sorted by centre.

        Returns:
            (N, K_out, C).
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            out = self.reference(x, harmonics, weights, edge_index)
        else:
            out = convolve(self.form, self.reference, x, harmonics, weights, edge_index)
        return out


class TrilinearBlock(OperationBlock):
    """``z = dS/dg`` of the form ``S(x, Y, w, g)``."""

    def __init__(self, call: Call) -> None:
        self.form: TrilinearForm = call.target.form
        if not self.form.terms:
            raise NotCovered
        super().__init__(call)

    def bound(self, edges: EdgeLists, x: Tensor, y: Tensor, w: Tensor) -> Bound:
        """The form with these operands; w has a row for each edge or for each pair of opposite ones."""
        sums = cpu_convolution(self.form, int(w.shape[2]), self.call.dtype)
        return ConvolutionOperation(sums, edges, paired=int(w.shape[0]) != edges.num_edges), (x, y, w)


@blocks(Convolution)
class ConvolutionBlock(TrilinearBlock):
    """(x, harmonics, weights, edge_index) -> sums at the centres."""

    operands = (0, 1, 2)
    weighed_by = (2,)

    def bind(self, *args: Any) -> Bound:
        x, y, w, edge_index = args
        return self.bound(edge_lists(edge_index, int(x.shape[0])), x, y, w)
