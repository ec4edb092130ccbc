"""Functions of a length by piecewise polynomials of degree five, compiled: values, and gradients by edge vectors.

At every knot a table has value, first and second derivative, so that what it interpolates is twice continuously
differentiable, and its gradient is the derivative of its values, not an approximation of the function's derivative.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.generate import Target, channel_segments, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import FormLibrary

_BASIS = (
    (1, 0, 0, -10, 15, -6),
    (0, 1, 0, -6, 8, -3),
    (0, 0, 0.5, -1.5, 1.5, -0.5),
    (0, 0, 0, 10, -15, 6),
    (0, 0, 0, -4, 7, -3),
    (0, 0, 0, 0.5, -1, 0.5),
)
"""Coefficients of t^0 to t^5: of value, first and second derivative at t = 0, then at t = 1."""


@dataclass(frozen=True)
class TableForm:
    """What a table is like; its numbers are operands."""

    width: int
    """Functions W."""
    intervals: int
    """K, between K + 1 knots of equal distance."""
    by_pair: bool
    """Whether each pair of species has functions and an end of its own."""


class CpuTable(FormLibrary[TableForm]):
    """The kernels of one form: 0 values, 1 gradient by the vectors.

    Below the first knot the functions go on as straight lines, beyond the last they stay as they are.
    """

    def source(self, kernel: Hashable, machine: Target) -> str:
        width, last = self.form.width, self.form.intervals - 1
        segments = channel_segments(width, machine.lanes)
        root = "sqrtf" if machine.scalar == "float" else "sqrt"
        pair = "row[e]" if self.form.by_pair else "0"
        gradient = kernel == 1
        lines = [
            *prelude(machine, [lanes for _, _, lanes in segments]),
            *kernel_head(),
            "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)",
            "for (int64_t p = 0; p < rows; p++) {",
            f"const int64_t e = first ? first[p] : p, q = {pair};",
            "const T x = x0[3 * e], y = x0[3 * e + 1], z = x0[3 * e + 2];",
            f"const T r = {root}(x * x + y * y + z * z), inverse = y0[1 + q];",
            "const T s = (r - y0[0]) * inverse;",
            # Not a number goes into the last interval and stays what it is.
            f"const int64_t i = s < 0 ? 0 : s < (T){last} ? (int64_t)s : {last};",
            "T t = s - (T)i; const int below = s < 0, above = t > 1;",
            f"const T *restrict k = w0 + (q * {self.form.intervals + 1} + i) * {3 * width};",
        ]
        if gradient:
            weights = [_slope(row) for row in _BASIS]
            lines += [
                *(f"T h{n} = {text};" for n, text in enumerate(weights)),
                "if (below) { h0 = 0; h1 = 1; h2 = 0; h3 = 0; h4 = 0; h5 = 0; }",
                "if (above) { h0 = 0; h1 = 0; h2 = 0; h3 = 0; h4 = 0; h5 = 0; }",
                "T total = 0;",
            ]
        else:
            lines += [
                "if (above) t = 1;",
                *(f"T h{n} = {_horner(row)};" for n, row in enumerate(_BASIS)),
                "if (below) { h0 = 1; h1 = t; h2 = 0; h3 = 0; h4 = 0; h5 = 0; }",
            ]
        for start, stop, lanes in segments:
            vector = f"v{lanes}"
            sums = " + ".join(f"h{n} * *(const {vector} *)(k + {n * width} + c)" for n in range(6))
            if gradient:
                lines += [
                    f"{{ {vector} sum = {'0' if lanes == 1 else '{0}'};",
                    f"for (int c = {start}; c < {stop}; c += {lanes})",
                    f"sum += *(const {vector} *)(g0 + p * {width} + c) * ({sums});",
                    f"total += sum{lanes}(sum); }}",
                ]
            else:
                lines += [
                    f"for (int c = {start}; c < {stop}; c += {lanes})",
                    f"*({vector} *)(out0 + p * {width} + c) = {sums};",
                ]
        if gradient:
            lines += [
                "total *= inverse / r;",
                "out0[3 * e] = total * x; out0[3 * e + 1] = total * y; out0[3 * e + 2] = total * z;",
            ]
        return "\n".join(["#include <math.h>", *lines, "}}", ""])

    def values(
        self, vectors: Tensor, table: Tensor, ends: Tensor, first: Tensor | None, pair: Tensor | None
    ) -> Tensor:
        """(E, 3) -> (E, W), or (P, W) of the edges that are named.

        Args:
            vectors: edge vectors.
            table: (pairs, K + 1, 3, W) value and derivatives times one and two powers of the knots' distance.
            ends: (1 + pairs,) first knot, and inverse distance of the knots.
            first: (P,) int64 edges, None for all.
            pair: (E,) int32 pair of species of each edge, None where there is one for all.
        """
        rows = len(vectors) if first is None else len(first)
        out = torch.empty((rows, self.form.width), dtype=self.dtype)
        self._run(0, rows, (first, pair, None), (vectors, None, ends, None, table, None, None, None), out)
        return out

    def gradient(
        self,
        vectors: Tensor,
        table: Tensor,
        ends: Tensor,
        first: Tensor | None,
        pair: Tensor | None,
        g: Tensor,
    ) -> Tensor:
        """(E, 3) gradient of ``<g, values>`` by the vectors, zero for edges that are not named."""
        rows = len(vectors) if first is None else len(first)
        out = torch.zeros_like(vectors)
        self._run(1, rows, (first, pair, None), (vectors, None, ends, None, table, None, g, None), out)
        return out

    def _run(
        self,
        kernel: int,
        rows: int,
        lists: tuple[Tensor | None, ...],
        operands: tuple[Tensor | None, ...],
        out: Tensor,
    ) -> None:
        self.call(
            kernel,
            rows=rows,
            work=rows * self.form.width,
            lists=lists,
            operands=operands,
            results=(out, None, None),
        )


def _horner(coefficients: tuple[float, ...]) -> str:
    text = f"(T){coefficients[-1]}"
    for c in reversed(coefficients[:-1]):
        text = f"(T){c} + t * ({text})" if c else f"t * ({text})"
    return text


def _slope(coefficients: tuple[float, ...]) -> str:
    return _horner(tuple(n * c for n, c in enumerate(coefficients))[1:])


@cache
def cpu_table(form: TableForm, dtype: torch.dtype) -> CpuTable:
    """The kernels of this form."""
    return CpuTable(form, dtype)
