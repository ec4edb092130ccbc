"""Allegro's operations on the edges around one atom: their weighted sum, and each edge times that sum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.compiled.kernels import (
    PolynomialForm,
    TrilinearForm,
    contract,
    convolve,
    multiply_edges,
    sum_by_centre,
)
from pimlip_zoo.compiled.kernels.edges import EdgeLists, edge_lists
from pimlip_zoo.compiled.kernels.product.cpu import cpu_edge_product
from pimlip_zoo.compiled.kernels.product.operation import ProductOperation
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.nn.convolution import TrilinearBlock
from pimlip_zoo.nn.symmetric_contraction import PolynomialBlock


@dataclass(frozen=True)
class ContractionSpec:
    """What one contraction computes, independent of how.

    ``out[ij, k, c] = sum over paths p: w[p, c] * sum_ab coefficient_p[a, b, k] V[ij, a, c] A[i, b, c]``
    """

    irreps_in: o3.Irreps
    """Components of the edge features V; each irrep once, without multiplicity."""
    irreps_environment: o3.Irreps
    """Components of the environment A, one row per centre."""
    irreps_out: o3.Irreps
    """Components of the result; each irrep once: all paths that end in it are added."""
    paths: tuple[tuple[int, int, int], ...]
    """(index into irreps_in, into irreps_environment, into irreps_out), one row of weights for each."""

    @cached_property
    def terms(self) -> tuple[tuple[int, int, int, int, float], ...]:
        """All nonzero (path, component of V, component of A, component of out, coefficient).

        The coefficients are e3nn's: ``sqrt(2 l_out + 1)`` times the Wigner 3j symbol in float64.
        """
        first, second, third = self.irreps_in, self.irreps_environment, self.irreps_out
        terms = []
        for path, (i, j, k) in enumerate(self.paths):
            l1, l2, l3 = first[i].ir.l, second[j].ir.l, third[k].ir.l
            coupling = o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)
            a0, b0, k0 = first.slices()[i].start, second.slices()[j].start, third.slices()[k].start
            for a, b, m in coupling.abs().gt(1e-12).nonzero().tolist():
                terms.append((path, a0 + a, b0 + b, k0 + m, float(coupling[a, b, m])))
        return tuple(terms)


def contraction_spec(
    irreps_in: o3.Irreps, irreps_environment: o3.Irreps, irreps_out: o3.Irreps
) -> ContractionSpec:
    """All paths between these irreps, those that end in the first irrep of the output first."""
    first, second, third = o3.Irreps(irreps_in), o3.Irreps(irreps_environment), o3.Irreps(irreps_out)
    paths = tuple(
        (i, j, k)
        for k, (_, ir_out) in enumerate(third)
        for i, (_, ir_in) in enumerate(first)
        for j, (_, ir_environment) in enumerate(second)
        if ir_out in ir_in * ir_environment
    )
    return ContractionSpec(first, second, third, paths)


class EdgeTensors(nn.Module):
    """Spherical harmonics of an edge, each degree times weights of its own: (E, K), (E, L, C) -> (E, K, C).

    Args:
        irreps: components of the harmonics; L is how many irreps there are.
        channels: C, for which kernels are made ahead of the first call; None: when it is called.
    """

    def __init__(self, irreps: o3.Irreps, channels: int | None = None) -> None:
        super().__init__()
        self.irreps, self.channels = o3.Irreps(irreps), channels
        self.form = _degrees_form(self.irreps)
        degree = [term[0] for term in self.form.terms]
        self._degree = nn.Buffer(torch.tensor(degree, dtype=torch.int64), persistent=False)

    def forward(self, harmonics: Tensor, weights: Tensor) -> Tensor:
        """The tensors of every edge."""
        return harmonics.unsqueeze(2) * weights[:, self._degree]


class EdgeEnvironment(nn.Module):
    """The sum of :class:`EdgeTensors` over the edges of each centre: a convolution of nothing but ones.

    Args:
        irreps: components of the harmonics.
        channels: as of :class:`EdgeTensors`.
    """

    def __init__(self, irreps: o3.Irreps, channels: int | None = None) -> None:
        super().__init__()
        self.form, self.channels = _degrees_form(o3.Irreps(irreps)), channels
        self.tensors = EdgeTensors(irreps, channels)

    def forward(self, harmonics: Tensor, weights: Tensor, edge_index: Tensor, num_atoms: int) -> Tensor:
        """(E, K), (E, L, C) -> (N, K, C)."""
        ones = torch.ones((num_atoms, 1, weights.shape[2]), dtype=weights.dtype, device=weights.device)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            out = self.reference(ones, harmonics, weights, edge_index)
        else:
            out = convolve(self.form, self.reference, ones, harmonics, weights, edge_index)
        return out

    @torch.jit.export
    def reference(self, ones: Tensor, harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """The sum in plain torch."""
        return sum_by_centre(self.tensors(harmonics, weights), edge_index[0], ones.shape[0])


def _degrees_form(irreps: o3.Irreps) -> TrilinearForm:
    """``sum x Y_k w_degree(k) g_k`` with a single component of x."""
    degree = [index for index, (_, irrep) in enumerate(irreps) for _ in range(irrep.dim)]
    terms = tuple((index, 0, component, component, 1.0) for component, index in enumerate(degree))
    return TrilinearForm(1, len(degree), len(degree), len(irreps), terms)


class CentreMatrices(ExactBuffers):
    """What all edges of an atom are multiplied with: environment, coefficients and weights made one.

    (N, K_environment, C) and weights (P, C) or (P, 1) -> (N, R, C), a row for each entry.

    Args:
        spec: the paths.
        entries: (component of V, component of out) of each row.
        channels: C.
        per_channel: whether weights are (P, C) or (P, 1).
    """

    def __init__(
        self, spec: ContractionSpec, entries: tuple[tuple[int, int], ...], channels: int, *, per_channel: bool
    ) -> None:
        super().__init__()
        self.channels, self.per_channel = channels, per_channel
        place = {entry: row for row, entry in enumerate(entries)}
        terms = sorted({(place[a, k], b) for _, a, b, k, _ in spec.terms})
        index = {term: number for number, term in enumerate(terms)}
        table = torch.zeros(len(terms), len(spec.paths), dtype=torch.float64)
        for path, a, b, k, value in spec.terms:
            table[index[place[a, k], b], path] += value
        self.num_rows = len(entries)
        self.form = PolynomialForm(
            int(spec.irreps_environment.dim), len(entries), tuple((row, (b,)) for row, b in terms)
        )
        self._table = nn.Buffer(table, persistent=False)
        self._row = nn.Buffer(torch.tensor([row for row, _ in terms], dtype=torch.int64), persistent=False)
        self._component = nn.Buffer(torch.tensor([b for _, b in terms], dtype=torch.int64), persistent=False)

    def forward(self, environment: Tensor, weights: Tensor) -> Tensor:
        """The matrices of every atom."""
        coefficients = self.coefficients(weights)
        one = torch.zeros(environment.shape[0], dtype=torch.int64, device=environment.device)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            out = self.reference(environment, coefficients, one)
        else:
            out = contract(self.form, self.reference, environment, coefficients, one)
        return out

    def table(self, dtype: torch.dtype) -> Tensor:
        """(T, P): how much each path's weights count in each term."""
        return self._table.to(dtype)

    def coefficients(self, weights: Tensor) -> Tensor:
        """(1, T, C): what each term is multiplied with."""
        of_terms = torch.matmul(self.table(weights.dtype), weights)
        return of_terms.expand(-1, self.channels).unsqueeze(0)

    def reference(self, x: Tensor, coefficients: Tensor, species: Tensor) -> Tensor:
        """The same in plain torch, with coefficients (1, T, C)."""
        products = x[:, self._component] * coefficients
        out = products.new_zeros((x.shape[0], self.num_rows, x.shape[2]))
        return out.index_add(1, self._row, products)


class EdgeProduct(nn.Module):
    """Each edge's features times the sparse matrix of its centre.

    Args:
        entries: (component of the features, component of the result) of each row of the matrices, sorted.
        dim_in: components of the features.
        dim_out: components of the result.
    """

    def __init__(self, entries: tuple[tuple[int, int], ...], dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.entries, self.dim_in, self.dim_out = entries, dim_in, dim_out
        place = [a * dim_out + k for a, k in entries]
        self._place = nn.Buffer(torch.tensor(place, dtype=torch.int64), persistent=False)

    def forward(self, features: Tensor, matrices: Tensor, centre: Tensor) -> Tensor:
        """Multiply.

        Args:
            features: (E, K_in, C).
            matrices: (N, R, C), a row for each entry.
            centre: (E,) the row of the matrices that belongs to an edge.

        Returns:
            (E, K_out, C).
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            out = self.reference(features, matrices, centre)
        else:
            out = multiply_edges(self, features, matrices, centre)
        return out

    @torch.jit.export
    def reference(self, features: Tensor, matrices: Tensor, centre: Tensor) -> Tensor:
        """The same in plain torch."""
        atoms, _, channels = matrices.shape
        dense = matrices.new_zeros((atoms, self.dim_in * self.dim_out, channels))
        dense = dense.index_add(1, self._place, matrices).view(atoms, self.dim_in, self.dim_out, channels)
        out = features[:, :1] * dense[:, 0][centre]
        for a in range(1, self.dim_in):
            out = torch.addcmul(out, features[:, a : a + 1], dense[:, a][centre])
        return out


class EdgeContraction(nn.Module):
    """Each edge's features times the environment of its centre, path by path with trainable weights.

    The environment belongs to the atom, so its product with coefficients and weights is made once per atom: a
    (K_in, K_out) matrix per channel, which then multiplies every edge of that atom.

    Args:
        spec: the paths.
        channels: C.
        per_channel: weights for every path and channel, or one per path.
    """

    def __init__(self, spec: ContractionSpec, channels: int, *, per_channel: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.irreps_out = spec.irreps_out
        columns = channels if per_channel else 1
        self.weights = nn.Parameter(
            torch.empty(len(spec.paths), columns).uniform_(-math.sqrt(3.0), math.sqrt(3.0))
        )
        # Paths that meet in the same (component of V, component of out) are added before an edge is touched.
        entries = tuple(sorted({(a, k) for _, a, _, k, _ in spec.terms}))
        self.matrices = CentreMatrices(spec, entries, channels, per_channel=per_channel)
        self.product = EdgeProduct(entries, int(spec.irreps_in.dim), int(spec.irreps_out.dim))

    def forward(self, features: Tensor, environment: Tensor, centre: Tensor) -> Tensor:
        """Contract.

        Args:
            features: (E, K_in, C).
            environment: (N, K_environment, C).
            centre: (E,) the row of the environment that belongs to an edge, ascending.

        Returns:
            (E, K_out, C).
        """
        out: Tensor = self.product(features, self.matrices(environment, self.weights), centre)
        return out


@blocks(EdgeEnvironment)
class EnvironmentBlock(TrilinearBlock):
    """(harmonics, weights, edge_index, num_atoms) -> sums at the centres; x is one."""

    operands = (1, 2)

    def bind(self, *args: Any) -> Bound:
        y, w, edge_index, atoms = args
        ones = torch.ones((atoms, 1, w.shape[2]), dtype=w.dtype)
        return self.bound(edge_lists(edge_index, atoms), ones, y, w)


@blocks(EdgeTensors)
class TensorsBlock(TrilinearBlock):
    """(harmonics, weights) -> their product for every edge, which is a sum of one term: each edge is a centre."""

    operands = (1, 2)

    def bind(self, *args: Any) -> Bound:
        y, w = args
        count = int(y.shape[0])
        each = torch.arange(count)
        ones = torch.ones((1, 1, w.shape[2]), dtype=w.dtype)
        edges = EdgeLists(torch.stack([each, torch.zeros_like(each)]), count)
        return self.bound(edges, ones, y, w)


@blocks(CentreMatrices)
class MatricesBlock(PolynomialBlock):
    """(environment, weights) -> Allegro's matrices; the weights are the second active argument."""

    operands = (0, 1)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: CentreMatrices = call.target
        self.form, self.channels = module.form, module.channels
        if call.active != ((0,), (1,)) or call.geometric[1]:
            raise NotCovered

    def bind(self, *args: Any) -> Bound:
        environment, weights = args
        one = torch.zeros(environment.shape[0], dtype=torch.int64)
        return self.bound(environment, self.call.target.coefficients(weights), one)

    def by_argument(self, saved: Any, found: Tensors) -> Tensors:
        coefficients = found[1]
        assert coefficients is not None
        module: CentreMatrices = self.call.target
        weights = torch.matmul(module.table(coefficients.dtype).T, coefficients[0])
        return found[0], weights if module.per_channel else weights.sum(1, keepdim=True)


@blocks(EdgeProduct)
class ProductBlock(OperationBlock):
    """(features, matrices, centre) -> products, bilinear in the first two."""

    operands = (0, 1)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.module: EdgeProduct = call.target
        if len(call.active) != 2 or not self.module.entries:
            raise NotCovered

    def bind(self, *args: Any) -> Bound:
        features, matrices, centre = args
        module = self.module
        channels, dtype = int(features.shape[2]), features.dtype
        kernels = cpu_edge_product(module.entries, module.dim_in, module.dim_out, channels, dtype)
        return ProductOperation(kernels, edge_lists(centre, int(matrices.shape[0]))), (features, matrices)
