"""What a convolution kernel computes: a sparse trilinear form and, as derivatives, sums of such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import Tensor

# Which tensor stands in the place of an operand: 0 itself, 1 its tangent (for g, a second cotangent).
# A term of a sum names one variant for each operand that it multiplies.
Term = tuple[int, int, int]


@dataclass(frozen=True)
class Path:
    """All terms that share one set of radial weights."""

    index: int
    """Which weights."""
    terms: tuple[tuple[int, int, int, float], ...]
    """(component of x, component of Y, component of out, coefficient)."""

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Components of x, ascending."""
        return tuple(sorted({term[0] for term in self.terms}))

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """Components of out, ascending."""
        return tuple(sorted({term[2] for term in self.terms}))


@dataclass(frozen=True)
class TrilinearForm:
    """``S = sum_ijct coefficient_t x[j, a_t, c] Y[ij, b_t] w[ij, p_t, c] g[i, k_t, c]``.

    The sum is over edges ij, channels c and terms t. The convolution is ``dS/dg``; its derivatives of every
    order are derivatives of S, again, with some operands replaced by tangents. So a kernel is named by the
    operand it returns and by the variants that it sums.
    """

    dim_in: int
    """Components of x."""
    dim_edge: int
    """Components of Y."""
    dim_out: int
    """Components of g and of the convolution's result."""
    num_paths: int
    """Sets of radial weights."""
    terms: tuple[tuple[int, int, int, int, float], ...]
    """(path, component of x, component of Y, component of out, coefficient), nonzero ones only."""
    widths: tuple[int, ...] = ()
    """How many times the channels each component of x has; empty: once each. What is made of a component, its
    weights and its results, is as wide. Tensors hold (rows, sum of widths, C), a component's rows in succession."""

    @cached_property
    def _hash(self) -> int:
        return hash((self.dim_in, self.dim_edge, self.dim_out, self.num_paths, self.terms, self.widths))

    def __hash__(self) -> int:  # asked for on every call, and the terms are many
        return self._hash

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The terms by path; a path without terms is left out."""
        groups: dict[int, list[tuple[int, int, int, float]]] = {}
        for path, a, b, k, value in self.terms:
            groups.setdefault(path, []).append((a, b, k, value))
        return tuple(Path(index, tuple(terms)) for index, terms in sorted(groups.items()))

    def width(self, path: Path) -> int:
        """Of the components that a path reads and writes, and of its weights."""
        return self.widths[path.inputs[0]] if self.widths else 1

    @cached_property
    def rows_in(self) -> tuple[int, ...]:
        """Where each component of x begins, and their number of rows."""
        return _begins(self.widths or (1,) * self.dim_in)

    @cached_property
    def rows_out(self) -> tuple[int, ...]:
        """The same of what comes out."""
        found = [1] * self.dim_out
        for path in self.paths:
            for k in path.outputs:
                found[k] = self.width(path)
        return _begins(found)

    @cached_property
    def rows_path(self) -> tuple[int, ...]:
        """The same of the weights, by path."""
        found = [1] * self.num_paths
        for path in self.paths:
            found[path.index] = self.width(path)
        return _begins(found)

    @cached_property
    def by_width(self) -> tuple[tuple[int, tuple[Path, ...]], ...]:
        """The paths of each width, the widest first."""
        groups: dict[int, list[Path]] = {}
        for path in self.paths:
            groups.setdefault(self.width(path), []).append(path)
        return tuple((width, tuple(groups[width])) for width in sorted(groups, reverse=True))


def _begins(sizes: Sequence[int]) -> tuple[int, ...]:
    return (0, *accumulate(sizes))


@dataclass(frozen=True)
class NodeSum:
    """A sum over the edges of each atom: ``dS/dg`` (side ``out``) or ``dS/dx`` (side ``in``)."""

    side: str
    """``out``: gathers x, sums at the centres. ``in``: gathers g, sums at the neighbours."""
    terms: tuple[Term, ...]
    """Variants of (gathered operand, Y, w)."""
    paired: bool = False
    """w has one row for each pair of opposite edges, see ``edges.EdgePairs``."""


@dataclass(frozen=True)
class EdgeSum:
    """``dS/dw`` and ``dS/dY``, one row per edge; either may be left out."""

    weights: tuple[Term, ...]
    """Variants of (x, Y, g) that make the gradient of w."""
    harmonics: tuple[Term, ...]
    """Variants of (x, w, g) that make the gradient of Y."""
    paired: bool = False
    """w and its gradient have one row for each pair of opposite edges."""


FORWARD = NodeSum("out", ((0, 0, 0),))
"""The convolution itself."""
Operands = tuple[Tensor | None, ...]
"""An operand and its tangent, None where it is not read."""
