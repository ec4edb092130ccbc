"""MACE's symmetric contraction: polynomials of an atom's features that transform as irreps."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray
from torch import Tensor, nn

from pimlip_zoo.compiled.exact import ExactBuffers
from pimlip_zoo.compiled.kernels import PolynomialForm, contract
from pimlip_zoo.compiled.kernels.polynomial.cpu import CpuPolynomial, cpu_polynomial
from pimlip_zoo.compiled.kernels.polynomial.operation import PolynomialOperation
from pimlip_zoo.compiled.sweeps.block import Call, NotCovered, Tensors, blocks
from pimlip_zoo.compiled.sweeps.operation import Bound, OperationBlock
from pimlip_zoo.errors import InputError

CouplingBasis = Literal["paths", "reduced"]
Term = tuple[int, tuple[int, ...]]
Array = NDArray[np.float64]

_LARGEST = 1e9
"""Numbers in the tables of couplings: 8 GB."""
_ZERO = 1e-10  # a polynomial's coefficients are either larger than 1e-2 or rounding


@dataclass(frozen=True)
class WeightBlock:
    """The weights of one correlation order of one irrep of the output."""

    irrep_out: o3.Irrep
    order: int
    """Number of factors, 1 to the correlation."""
    first: int
    """First row of the weights."""
    size: int
    """Number of rows: polynomials, each with a weight per species and channel."""
    paths: int
    """Number of coupling paths; the size, unless the basis is reduced."""


@dataclass(frozen=True)
class SymmetricContractionSpec:
    """What one symmetric contraction computes, independent of how.

    ``out[n, k, c] = sum over terms t with component k: coefficient[s_n, t, c] * product_i A[n, i, c]``, where i runs
    over the monomial of t and ``coefficient[s, t, c] = sum_p table[t, p] W[s, p, c]``.
    """

    irreps_in: o3.Irreps
    """Components of A; each irrep once, without multiplicity."""
    irreps_out: o3.Irreps
    """Components of the result, likewise."""
    correlation: int
    """The highest number of factors."""
    terms: tuple[Term, ...]
    """(component of out, ascending components of A that are multiplied), sorted by component, then by order."""
    blocks: tuple[WeightBlock, ...]
    """Which rows of the weights are what."""
    table: Array = field(compare=False, repr=False)
    """(terms, rows of the weights): the generalised Clebsch-Gordan coefficients."""

    @property
    def num_weights(self) -> int:
        """Rows of the weights."""
        return sum(block.size for block in self.blocks)


@cache
def symmetric_contraction_spec(
    irreps_in: o3.Irreps, irreps_out: o3.Irreps, correlation: int, basis: CouplingBasis = "paths"
) -> SymmetricContractionSpec:
    """All polynomials of up to ``correlation`` factors that transform as the irreps of the output.

    Args:
        irreps_in: components of the features, each irrep once.
        irreps_out: components of the result, each irrep once.
        correlation: 1 to 4.
        basis: ``paths`` has a weight for every way to couple the factors one after the other, as published; these
            are linearly dependent. ``reduced`` has as few as span the same polynomials, scaled such that weights
            of equal variance give the same distribution of polynomials.

    Raises:
        InputError: for a correlation out of range, an unknown basis, or more couplings than a computer can hold.
    """
    if correlation not in range(1, 5):
        raise InputError(f"correlation is {correlation}", key="correlation", hint="give 1, 2, 3 or 4")
    if basis not in get_args(CouplingBasis):
        raise InputError(f"the basis of couplings is {basis!r}", key="basis", hint="paths or reduced")
    needed = sum(
        math.comb(irreps_in.dim + order - 1, order) * irrep.dim * _num_paths(irreps_in, irrep, order)
        for _, irrep in irreps_out
        for order in range(1, correlation + 1)
    )
    if needed > _LARGEST:
        raise InputError(
            f"the couplings of {correlation} factors of degree up to {irreps_in.lmax} are up to {needed} numbers",
            key="correlation",
            hint="take a lower correlation or l_max",
        )
    blocks: list[WeightBlock] = []
    terms_all: list[Term] = []
    pieces: list[tuple[slice, slice, Array]] = []  # (terms, rows of the weights, coefficients)
    for start, (_, irrep) in zip((s.start for s in irreps_out.slices()), irreps_out, strict=True):
        orders: list[tuple[list[Term], Array, slice]] = []
        for order in range(1, correlation + 1):
            terms, matrix = coupling_terms(irreps_in, irrep, order)
            paths = matrix.shape[1]
            if basis == "reduced":
                matrix = _reduced(matrix)
            matrix = np.where(np.abs(matrix) > _ZERO, matrix, 0.0)
            kept = np.flatnonzero(np.count_nonzero(matrix, axis=1))
            first = sum(block.size for block in blocks)
            blocks.append(WeightBlock(irrep, order, first, matrix.shape[1], paths))
            found = [terms[index] for index in kept.tolist()]
            orders.append((found, matrix[kept], slice(first, first + matrix.shape[1])))
        for component in range(irrep.dim):
            for found, matrix, rows in orders:  # each sorted by component, then by monomial
                own = slice(bisect_left(found, (component,)), bisect_left(found, (component + 1,)))
                begin = len(terms_all)
                terms_all += [(start + component, monomial) for _, monomial in found[own]]
                pieces.append((slice(begin, len(terms_all)), rows, matrix[own]))
    table = np.zeros((len(terms_all), sum(block.size for block in blocks)))
    for of_terms, rows, coefficients in pieces:
        table[of_terms, rows] = coefficients
    return SymmetricContractionSpec(
        irreps_in, irreps_out, correlation, tuple(terms_all), tuple(blocks), table
    )


@cache
def coupling_terms(irreps_in: o3.Irreps, irrep_out: o3.Irrep, order: int) -> tuple[tuple[Term, ...], Array]:
    """The polynomials of one order that transform as one irrep, one for every coupling path.

    A path couples the factors one after the other, ``(((l1 l2) L12, l3) L123 ...)``, with e3nn's Clebsch-Gordan
    coefficients in ``component`` normalisation (Batatia et al., NeurIPS 2022, eq. 10); since all factors are the same
    features, coefficients of monomials that differ in the order of the factors add up.

    Returns:
        Terms (component of the irrep, monomial) and a (terms, paths) matrix of coefficients.
    """
    size = int(irreps_in.dim)
    codes, columns, values = [], [], []
    paths = 0
    for places, coupling in _paths(irreps_in, irrep_out, order):
        index = np.argwhere(np.abs(coupling) > _ZERO)
        if len(index) == 0:
            continue
        factors = np.sort(index[:, 1:] + np.array(places), axis=1)
        codes.append(index[:, 0] * size**order + factors @ (size ** np.arange(order)[::-1]))
        columns.append(np.full(len(index), paths))
        values.append(coupling[tuple(index.T)])
        paths += 1
    if paths == 0:
        return (), np.zeros((0, 0))
    unique, row = np.unique(np.concatenate(codes), return_inverse=True)
    matrix = np.zeros((len(unique), paths))
    np.add.at(matrix, (row.reshape(-1), np.concatenate(columns)), np.concatenate(values))
    digits = np.array(np.unravel_index(unique, (irrep_out.dim,) + (size,) * order)).T.tolist()
    kept = np.abs(matrix).max(axis=1) > _ZERO
    terms = tuple((d[0], tuple(d[1:])) for d, keep in zip(digits, kept, strict=True) if keep)
    return terms, matrix[kept]


def _num_paths(irreps_in: o3.Irreps, irrep_out: o3.Irrep, order: int) -> int:
    """How many there are, without making them."""
    left = Counter({irrep: 1 for _, irrep in irreps_in})
    for _ in range(order - 1):
        products = Counter[o3.Irrep]()
        for before, count in left.items():
            for _, right in irreps_in:
                for irrep in before * right:
                    products[irrep] += count
        left = products
    return left[irrep_out]


def _paths(irreps_in: o3.Irreps, irrep_out: o3.Irrep, order: int) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Every path: where its factors begin in the features, and its (2l+1, 2l1+1, ..., 2lv+1) coefficients."""
    starts = [(s.start, irrep) for s, (_, irrep) in zip(irreps_in.slices(), irreps_in, strict=True)]
    longest = max(irrep.l for _, irrep in starts)
    left = [((start,), irrep, np.eye(irrep.dim)) for start, irrep in starts]
    for factor in range(2, order + 1):
        reach = irrep_out.l + longest * (order - factor)  # what the factors to come can still bring down
        left = sorted(
            (
                ((*places, start), irrep, _couple(coupling, before, right, irrep))
                for (places, before, coupling), (start, right) in itertools.product(left, starts)
                for irrep in before * right
                if (irrep == irrep_out if factor == order else irrep.l <= reach)
            ),
            key=lambda path: path[1],
        )
    return ((places, coupling) for places, irrep, coupling in left if irrep == irrep_out)


def _couple(coupling: Array, left: o3.Irrep, right: o3.Irrep, out: o3.Irrep) -> Array:
    symbol = _wigner_3j(out.l, left.l, right.l) * math.sqrt(out.dim)
    product: Array = np.einsum("ijk,jx->ixk", symbol, coupling.reshape(left.dim, -1))
    return product.reshape(out.dim, *coupling.shape[1:], right.dim)


@cache
def _wigner_3j(l1: int, l2: int, l3: int) -> Array:
    return np.asarray(o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy())


def _reduced(matrix: Array) -> Array:
    """Columns that span the columns of ``U``: the lower trapezoidal ``B`` with ``B B^T = U U^T``.

    Unlike eigenvectors it is unique, so that weights mean the same on every machine.
    """
    columns: list[Array] = []
    gram = matrix @ matrix.T
    for row in range(len(matrix)):
        rest = gram[row] - sum((column[row] * column for column in columns), np.zeros(len(matrix)))
        if rest[row] > 1e-6 * gram[row, row]:
            column = rest / math.sqrt(rest[row])
            column[:row] = 0.0
            columns.append(column)
    return np.stack(columns, axis=1) if columns else np.zeros((len(matrix), 0))


class SymmetricContraction(ExactBuffers):
    """Atomic features to the power of up to the correlation, contracted to irreps (paper, eq. 10 and 11).

    Every species and channel has its own weights, normal with standard deviation one over the number of paths of
    that irrep and order.

    Args:
        spec: the polynomials.
        num_species: S.
        channels: C.
    """

    def __init__(self, spec: SymmetricContractionSpec, num_species: int, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.irreps_out = spec.irreps_out
        self.form = PolynomialForm(int(spec.irreps_in.dim), int(spec.irreps_out.dim), spec.terms)
        weights = torch.randn(num_species, spec.num_weights, channels)
        for block in spec.blocks:
            weights[:, block.first : block.first + block.size] /= max(block.paths, 1)
        self.weights = nn.Parameter(weights)
        self._table = nn.Buffer(torch.from_numpy(spec.table.copy()), persistent=False)
        # Monomials are made one factor at a time: monomial m of one order is monomial parent[m] of the order below
        # times a component.
        monomials = sorted(
            {m[:n] for _, m in spec.terms for n in range(1, len(m) + 1)}, key=lambda m: (len(m), m)
        )
        place = {monomial: index for index, monomial in enumerate(monomials)}
        self._sizes = [sum(len(m) == n for m in monomials) for n in range(1, spec.correlation + 1)]
        parent = [place[m[:-1]] if len(m) > 1 else 0 for m in monomials]
        self._parent = nn.Buffer(torch.tensor(parent, dtype=torch.int64), persistent=False)
        factor = torch.tensor([m[-1] for m in monomials], dtype=torch.int64)
        self._factor = nn.Buffer(factor, persistent=False)
        of_term = torch.tensor([place[monomial] for _, monomial in spec.terms], dtype=torch.int64)
        self._monomial = nn.Buffer(of_term, persistent=False)
        components = [component for component, _ in spec.terms]
        self._terms_of_component = [components.count(k) for k in range(int(spec.irreps_out.dim))]

    def table(self, dtype: torch.dtype) -> Tensor:
        """(T, rows of the weights): the generalised Clebsch-Gordan coefficients."""
        return self._table.to(dtype)

    def coefficients(self) -> Tensor:
        """(S, T, C): what each species multiplies each term with."""
        return torch.matmul(self.table(self.weights.dtype), self.weights)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """Contract.

        Args:
            x: (N, K_in, C).
            species: (N,) index of each row's weights.

        Returns:
            (N, K_out, C).
        """
        coefficients = self.coefficients()
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            out = self.reference(x, coefficients, species)
        else:
            out = contract(self.form, self.reference, x, coefficients, species)
        return out

    def reference(self, x: Tensor, coefficients: Tensor, species: Tensor) -> Tensor:
        """The same in plain torch, with the coefficients (S, T, C) given."""
        begin = self._sizes[0]
        products = x[:, self._factor[:begin]]
        for size in self._sizes[1:]:
            if size > 0:
                parents = products[:, self._parent[begin : begin + size]]
                products = torch.cat([products, parents * x[:, self._factor[begin : begin + size]]], dim=1)
            begin += size
        out: list[Tensor] = []
        begin = 0
        for count in self._terms_of_component:
            of_terms = products[:, self._monomial[begin : begin + count]]
            out.append((of_terms * coefficients[:, begin : begin + count][species]).sum(dim=1))
            begin += count
        return torch.stack(out, dim=1)


class PolynomialBlock(OperationBlock):
    """Polynomials of the first argument, with coefficients that are linear in weights."""

    form: PolynomialForm
    channels: int

    @cached_property
    def kernels(self) -> CpuPolynomial:
        """Compiled when asked for."""
        return cpu_polynomial(self.form, self.channels, self.call.dtype)

    def bound(self, x: Tensor, coefficients: Tensor, species: Tensor) -> Bound:
        """With coefficients (S, T, C)."""
        return PolynomialOperation(self.kernels, species, int(coefficients.shape[0])), (x, coefficients)


@blocks(SymmetricContraction)
class ContractionBlock(PolynomialBlock):
    """(x, species) -> MACE's symmetric contraction."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        module: SymmetricContraction = call.target
        self.form, self.channels = module.form, int(module.weights.shape[2])
        if len(call.active) != 1 or not self.form.terms:
            raise NotCovered

    def bind(self, *args: Any) -> Bound:
        x, species = args
        return self.bound(x, self.call.target.coefficients(), species)

    def by_parameter(self, saved: Any, found: Tensors) -> Tensors:
        coefficients = found[1]
        assert coefficients is not None
        return (torch.matmul(self.call.target.table(coefficients.dtype).T, coefficients),)
