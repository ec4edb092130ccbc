"""MACE's symmetric contraction compiled: polynomials of each atom's features, channel by channel.

``S = sum over atoms n, channels c, terms t: q[s_n, t, c] * prod_i A[n, i, c] * g[n, k_t, c]``, i over the monomial of
t; the result is ``dS/dg``, and all derivatives come from the program that computes it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.generate import Target, channel_segments, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import FormLibrary
from pimlip_zoo.compiled.kernels.program import Program, Value
from pimlip_zoo.compiled.kernels.swept import Sweep


@dataclass(frozen=True)
class PolynomialForm:
    """The polynomials of all components of the result."""

    dim_in: int
    """Components of A."""
    dim_out: int
    """Components of the result."""
    terms: tuple[tuple[int, tuple[int, ...]], ...]
    """(component of the result, ascending components of A that are multiplied)."""


_FORWARD = Sweep(0)
_GROUP = 32  # terms in one function: with more, values are spilled, and compilers take longer
_PART = (
    "const T *restrict pa, const T *restrict ph, const T *restrict pg, const T *restrict pk, const T *restrict pq, "
    "T *restrict o, T *restrict oq, T *restrict og"
)


class CpuPolynomial(FormLibrary[PolynomialForm]):
    """The kernels of one form for one number of channels and one dtype."""

    value = _FORWARD

    def source(self, kernel: Hashable, machine: Target) -> str:
        assert isinstance(kernel, Sweep)
        form, width = self.form, self.channels
        segments = channel_segments(width, machine.lanes)
        lines = prelude(machine, [lanes for _, _, lanes in segments])
        for lanes in sorted({lanes for _, _, lanes in segments}):
            for number, group in enumerate(self._groups()):
                lines += [f"static __attribute__((noinline)) void part{number}_{lanes}({_PART}) {{"]
                lines += [*self._body(kernel, f"v{lanes}", group), "}"]
        lines += kernel_head()
        # Sums over atoms are safe when threads share out the channels; everything else shares out the atoms.
        parallel = "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)"
        atoms = "for (int64_t n = 0; n < rows; n++) {"
        first = form.dim_out if kernel.kind == 0 else form.dim_in
        for start, stop, lanes in segments:
            chunks = f"for (int c = {start}; c < {stop}; c += {lanes}) {{"
            lines += [parallel, *((chunks, atoms) if kernel.wants_weights else (atoms, chunks))]
            lines.append(f"const int64_t q = (int64_t)row[n] * {len(form.terms) * width} + c;")
            rows = [("x0", form.dim_in), ("x1", form.dim_in), ("g0", form.dim_out), ("g1", form.dim_out)]
            rows += [("out0", first), ("out2", form.dim_out)]
            pa, ph, pg, pk, o, og = (f"{name} + n * {dim * width} + c" for name, dim in rows)
            if kernel.kind == 0 or kernel.wants_input:
                lines.append(
                    f"for (int i = 0; i < {first}; i++) memset({o} + i * {width}, 0, sizeof(v{lanes}));"
                )
            if kernel.wants_cotangent:
                lines.append(
                    f"for (int i = 0; i < {form.dim_out}; i++) memset({og} + i * {width}, 0, sizeof(v{lanes}));"
                )
            for number in range(len(self._groups())):
                lines.append(f"part{number}_{lanes}({pa}, {ph}, {pg}, {pk}, w0 + q, {o}, out1 + q, {og});")
            lines.append("}}")
        return "\n".join([*lines, "}", ""])

    def _groups(self) -> list[list[int]]:
        """Terms in functions of bounded size: compilers take more than twice as long for twice the code."""
        order = sorted(range(len(self.form.terms)), key=lambda t: self.form.terms[t])
        return [order[i : i + _GROUP] for i in range(0, len(order), _GROUP)]

    def _body(self, kernel: Sweep, vector: str, group: list[int]) -> list[str]:
        program, results = sweep_program(self.form, kernel, group)
        load = {name: f"*(const {vector} *)(p{name} + {{}} * {self.channels})" for name in "ahgkq"}
        writes = [
            (value, f"*({vector} *)({name} + {row * self.channels}) += {{}};") for value, name, row in results
        ]
        return program.emit(vector, load, writes)

    def run(
        self,
        kernel: Sweep,
        species: Tensor,
        a: Tensor,
        q: Tensor,
        g: Tensor | None = None,
        h: Tensor | None = None,
        k: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(result or gradient of A, gradient of q, derivative by g), None where it is not wanted."""
        rows, width, form = a.shape[0], self.channels, self.form
        dim = form.dim_out if kernel.kind == 0 else form.dim_in
        first = (
            torch.empty((rows, dim, width), dtype=a.dtype) if kernel.kind == 0 or kernel.wants_input else None
        )
        sums = torch.zeros_like(q, memory_format=torch.contiguous_format) if kernel.wants_weights else None
        third = torch.empty((rows, form.dim_out, width), dtype=a.dtype) if kernel.wants_cotangent else None
        self.call(
            kernel,
            rows=rows,
            work=rows * len(form.terms) * width,
            lists=(None, species, None),
            operands=(a, h, None, None, q, None, g, k),
            results=(first, sums, third),
        )
        return first, sums, third


def sweep_program(
    form: PolynomialForm, kernel: Sweep, group: Sequence[int]
) -> tuple[Program, list[tuple[int, str, int]]]:
    """What some of the terms contribute to a sweep, for one atom and channel.

    Returns:
        A program of the inputs a, h, g, k and q, and (value, where, row) of what is to be added: to ``o``, the result
        or the gradient of A, to ``oq``, that of the coefficients, and to ``og``, the derivative by g.
    """
    program = Program()
    components = sorted({form.terms[t][0] for t in group})
    inputs = sorted({i for t in group for i in form.terms[t][1]})
    a = {i: program.input("a", i) for i in inputs}
    q = {t: program.input("q", t) for t in group}
    sums: dict[int, Value] = dict.fromkeys(components)
    for t in group:
        component, monomial = form.terms[t]
        product: Value = a[monomial[0]]
        for i in monomial[1:]:
            product = program.multiply(product, a[i])
        sums[component] = program.add(sums[component], program.multiply(q[t], product))
    plain = out = [sums[k] for k in components]
    if kernel.kind == 2:
        out = program.tangents(out, {a[i]: program.input("h", i) for i in inputs})
    results: list[tuple[Value, str, int]] = []
    if kernel.kind == 0 or kernel.wants_cotangent:
        name = "o" if kernel.kind == 0 else "og"
        results += [(value, name, k) for k, value in zip(components, out, strict=True)]
    if kernel.wants_input or kernel.wants_weights:
        total = program.dot([program.input("g", k) for k in components], out)
        if kernel.adds:
            total = program.add(total, program.dot([program.input("k", k) for k in components], plain))
        found = program.gradients(total, [*a.values(), *q.values()])
        if kernel.wants_input:
            results += [(value, "o", i) for i, value in zip(inputs, found[: len(a)], strict=True)]
        if kernel.wants_weights:
            results += [(value, "oq", t) for t, value in zip(group, found[len(a) :], strict=True)]
    return program, [(value, name, row) for value, name, row in results if value is not None]


@cache
def cpu_polynomial(form: PolynomialForm, channels: int, dtype: torch.dtype) -> CpuPolynomial:
    """The kernels of this form, shared by all modules that have it."""
    return CpuPolynomial(form, dtype, channels)
