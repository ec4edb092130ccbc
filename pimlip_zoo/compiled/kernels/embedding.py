"""Radial functions and harmonics of edges compiled, vectors running over edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted, differentiable
from pimlip_zoo.compiled.kernels.dispatch import compiled_operation
from pimlip_zoo.compiled.kernels.generate import Target, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import FormLibrary
from pimlip_zoo.compiled.kernels.program import Program, Value
from pimlip_zoo.compiled.kernels.scope import leaf_geometry
from pimlip_zoo.graph import AtomGraph

Reference = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EmbeddingForm:
    """``prefactor sin(k_n x) / x`` times a cutoff, n = 1..B, and harmonics up to l_max."""

    num_basis: int
    prefactor: float
    order: int
    couplings: tuple[tuple[tuple[int, int, int, float], ...], ...]
    """For each degree from 2 on, (component below, component of degree 1, component, coefficient)."""
    frequencies: tuple[float, ...] = ()
    """``k_n / pi``, all positive; empty: n."""
    onset: float | None = None
    """Where the XPLOR cutoff begins to fall, in units of the cutoff; None: the polynomial of that order."""
    solid: bool = False
    """Harmonics are multiplied by ``r^l``."""

    @property
    def dim(self) -> int:
        """Components of the harmonics, degree 1 included."""
        return (len(self.couplings) + 2) ** 2


class CpuEmbedding(FormLibrary[EmbeddingForm]):
    """The kernels of one form: 0 values, 1 gradient by the vectors, 2 derivative of ``<h, gradient>`` by cotangents."""

    value = 0

    def source(self, kernel: Hashable, machine: Target) -> str:
        lanes = machine.lanes
        root = "sqrtf" if machine.scalar == "float" else "sqrt"
        lines = [*prelude(machine, [lanes]), f"typedef v{lanes} V;", *kernel_head()]
        lines += [
            "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)",
            f"for (int64_t e = 0; e < rows; e += {lanes}) {{",
            f"const int n = rows - e < {lanes} ? (int)(rows - e) : {lanes};",
            "const V zero = {0}, one = zero + (T)1;",
            "V u0 = one, u1 = zero, u2 = zero, ic = one;",
            "for (int j = 0; j < n; j++) {",
            "u0[j] = x0[3 * (e + j)]; u1[j] = x0[3 * (e + j) + 1]; u2[j] = x0[3 * (e + j) + 2]; ic[j] = y0[e + j]; }",
            "const V r2 = u0 * u0 + u1 * u1 + u2 * u2; V ir;",
            f"for (int j = 0; j < {lanes}; j++) ir[j] = (T)1 / {root}(r2[j]);",
            *(["const V v0_ = u0, v1_ = u1, v2_ = u2;"] if self.form.solid else []),
            "u0 *= ir; u1 *= ir; u2 *= ir;",
            "V x = r2 * ir * ic;",
            # Beyond the cutoff everything radial is zero; the reduced distance stays where the series hold.
            f"V inside; for (int j = 0; j < {lanes}; j++) {{",
            "inside[j] = x[j] < 1 ? 1 : 0; x[j] = x[j] < 1 ? x[j] : 1; }",
            *self._radial(machine, derivative=kernel != 0),
        ]
        lines += {0: self._values, 1: self._gradient, 2: self._second}[int(str(kernel))]()
        return "\n".join(["#include <math.h>", *lines, "}}", ""])

    def _radial(self, machine: Target, *, derivative: bool) -> list[str]:
        """``f<n>`` and, when asked for, their derivatives by the length ``d<n>``."""
        form = self.form
        degree = 14 if machine.scalar == "float" else 24
        sine = [(-1) ** (k // 2) / math.factorial(k) for k in range(1, degree, 2)]
        cosine = [(-1) ** (k // 2) / math.factorial(k) for k in range(0, degree + 1, 2)]
        if form.frequencies:
            out = ["const V ix = one / x;"]
        else:
            out = [
                f"const V y = (x - (T)0.5) * (T){math.pi!r}, y2 = y * y;",
                f"V sn = zero + (T){sine[-1]!r}, cs = zero + (T){cosine[-1]!r};",
                *(f"sn = sn * y2 + (T){c!r};" for c in reversed(sine[:-1])),
                *(f"cs = cs * y2 + (T){c!r};" for c in reversed(cosine[:-1])),
                "const V s1 = cs, c1 = -(sn * y), ix = one / x;",  # of pi x
            ]
        out += self._polynomial() if form.onset is None else self._xplor(form.onset)
        frequencies = form.frequencies or tuple(range(1, form.num_basis + 1))
        for n, frequency in enumerate(frequencies, start=1):
            if form.frequencies:  # half turns are counted apart, and the series see what is left
                out += [
                    f"V turn{n} = x * (T){frequency!r}, even{n};",
                    f"for (int j = 0; j < {machine.lanes}; j++) {{ const int k = (int)(turn{n}[j] + (T)0.5);",
                    f"turn{n}[j] -= (T)k; even{n}[j] = k & 1 ? (T)-1 : (T)1; }}",
                    f"const V arg{n} = turn{n} * (T){math.pi!r}, squared{n} = arg{n} * arg{n};",
                    f"V s{n} = zero + (T){sine[-1]!r}, c{n} = zero + (T){cosine[-1]!r};",
                    *(f"s{n} = s{n} * squared{n} + (T){c!r};" for c in reversed(sine[:-1])),
                    *(f"c{n} = c{n} * squared{n} + (T){c!r};" for c in reversed(cosine[:-1])),
                    f"s{n} *= arg{n} * even{n}; c{n} *= even{n};",
                ]
            elif n > 1:
                out.append(
                    f"const V s{n} = s{n - 1} * c1 + c{n - 1} * s1, c{n} = c{n - 1} * c1 - s{n - 1} * s1;"
                )
            out.append(f"const V f{n} = s{n} * cut;")
            if derivative:
                out.append(
                    f"const V d{n} = ic * (s{n} * (slope - cut * ix) + (T){frequency * math.pi!r} * c{n} * cut);"
                )
        return out

    def _polynomial(self) -> list[str]:
        """``cut``, the cutoff times prefactor over x, and ``slope``, its derivative by x likewise."""
        form, p = self.form, self.form.order
        return [
            f"V power = one; for (int k = 0; k < {p - 1}; k++) power *= x;",
            f"V cut = (T){p * (p + 2.0)!r} + x * (T){-p * (p + 1) / 2!r};",
            f"cut = one + power * x * ((T){-(p + 1) * (p + 2) / 2!r} + x * cut);",
            f"cut = inside * cut * (T){form.prefactor!r} * ix;",
            f"V slope = inside * (T){-p * (p + 1) * (p + 2) / 2 * form.prefactor!r} * power * ix;",
            "slope = slope * (one - x) * (one - x);",
        ]

    def _xplor(self, onset: float) -> list[str]:
        """The same: one up to the onset x_0, then ``(1 - x^2)^2 (1 + 2 x^2 - 3 x_0^2) / (1 - x_0^2)^3``."""
        square, rest = onset * onset, (1 - onset * onset) ** 3
        return [
            "const V x2 = x * x, left = one - x2; V on;",
            f"for (int j = 0; j < (int)(sizeof(V) / sizeof(T)); j++) on[j] = x[j] < (T){onset!r} ? 1 : 0;",
            f"V cut = left * left * (one + (T)2 * x2 - (T){3 * square!r}) * (T){1 / rest!r};",
            f"V slope = (T){12 / rest!r} * x * left * ((T){square!r} - x2);",
            f"cut = inside * (on + (one - on) * cut) * (T){self.form.prefactor!r} * ix;",
            f"slope = inside * (one - on) * slope * (T){self.form.prefactor!r} * ix;",
        ]

    def _harmonics(self) -> tuple[Program, list[Value], list[int]]:
        program = Program()
        # Without a division by the length each degree is homogeneous in the vector: its power comes by itself.
        u = [program.input("v" if self.form.solid else "u", i) for i in range(3)]
        root = program.constant(math.sqrt(3.0))
        first = [program.multiply(root, v) for v in u]
        below, values = first, [program.constant(1.0), *first]
        for degree, terms in enumerate(self.form.couplings, start=2):
            here: list[Value] = [None] * (2 * degree + 1)
            for a, b, k, value in terms:
                product = program.multiply(program.multiply(below[a], first[b]), program.constant(value))
                here[k] = program.add(here[k], product)
            below = here
            values += here
        return program, values, u

    def _emit(self, program: Program, results: list[tuple[Value, str]]) -> list[str]:
        load = {"u": "u{}", "v": "v{}_", "h": "h{}", "g": "z{}", "constant": "zero + (T){}"}
        return program.emit("V", load, [(v, text) for v, text in results if v is not None])

    def _values(self) -> list[str]:
        program, values, _ = self._harmonics()
        dim, basis = self.form.dim, self.form.num_basis
        out = self._emit(program, [(v, f"const V p{k} = {{}};") for k, v in enumerate(values)])
        out += ["for (int j = 0; j < n; j++) {"]
        out += [f"out0[(e + j) * {basis} + {n}] = f{n + 1}[j];" for n in range(basis)]
        out += [f"out1[(e + j) * {dim} + {k}] = p{k}[j];" for k in range(dim)]
        return [*out, "}"]

    def _gradient(self) -> list[str]:
        program, values, u = self._harmonics()
        dim, basis = self.form.dim, self.form.num_basis
        out = [f"V z{k} = zero;" for k in range(dim)]
        out += [f"V b{n} = zero;" for n in range(basis)]
        out += ["for (int j = 0; j < n; j++) {"]
        out += [f"z{k}[j] = g1[(e + j) * {dim} + {k}];" for k in range(dim)]
        out += [f"b{n}[j] = g0[(e + j) * {basis} + {n}];" for n in range(basis)]
        out.append("}")
        # The constant component has no derivative.
        total = program.dot([program.input("g", k) for k in range(1, dim)], values[1:])
        found = program.gradients(total, u)
        out += [f"V q{i} = zero;" for i in range(3)]
        out += self._emit(program, [(v, f"q{i} = {{}};") for i, v in enumerate(found)])
        radial = " + ".join(f"b{n} * d{n + 1}" for n in range(basis)) or "zero"
        out += [
            f"const V along = {radial}, across = q0 * u0 + q1 * u1 + q2 * u2;",
            *(
                f"q{i} += u{i} * along;"
                if self.form.solid
                else f"q{i} = u{i} * along + ir * (q{i} - u{i} * across);"
                for i in range(3)
            ),
            "for (int j = 0; j < n; j++) {",
            *(f"out0[3 * (e + j) + {i}] = q{i}[j];" for i in range(3)),
            "}",
        ]
        return out

    def _second(self) -> list[str]:
        program, values, u = self._harmonics()
        dim, basis = self.form.dim, self.form.num_basis
        out = [
            *(f"V w{i}_ = zero;" for i in range(3)),
            "for (int j = 0; j < n; j++) {",
            *(f"w{i}_[j] = x1[3 * (e + j) + {i}];" for i in range(3)),
            "}",
            "const V along = w0_ * u0 + w1_ * u1 + w2_ * u2;",
            *(
                f"const V h{i} = w{i}_;"
                if self.form.solid
                else f"const V h{i} = ir * (w{i}_ - u{i} * along);"
                for i in range(3)
            ),
        ]
        tangents = program.tangents(values, {u[i]: program.input("h", i) for i in range(3)})
        out += [f"V p{k} = zero;" for k in range(dim)]
        out += self._emit(program, [(v, f"p{k} = {{}};") for k, v in enumerate(tangents)])
        out.append("for (int j = 0; j < n; j++) {")
        out += [f"out0[(e + j) * {basis} + {n}] = d{n + 1}[j] * along[j];" for n in range(basis)]
        out += [f"out1[(e + j) * {dim} + {k}] = p{k}[j];" for k in range(dim)]
        return [*out, "}"]

    def run(self, kernel: int, vectors: Tensor, inverse: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """(radial, harmonics) or their derivatives by cotangents; for kernel 1 (gradient by the vectors, nothing)."""
        rows, form = vectors.shape[0], self.form
        h, g0, g1 = (
            (others[0], None, None) if kernel == 2 else (None, *others) if kernel else (None, None, None)
        )
        first = torch.empty((rows, 3 if kernel == 1 else form.num_basis), dtype=self.dtype)
        second = torch.empty((0 if kernel == 1 else rows, form.dim), dtype=self.dtype)
        self.call(
            kernel,
            rows=rows,
            work=rows * (form.num_basis + form.dim),
            operands=(vectors, h, inverse, None, None, None, g0, g1),
            results=(first, second, None),
        )
        return first, second


@cache
def cpu_embedding(form: EmbeddingForm, dtype: torch.dtype) -> CpuEmbedding:
    """The kernels of this form, shared by all modules that have it."""
    return CpuEmbedding(form, dtype)


_EMBED_EDGES = compiled_operation("embed_edges", cpu=cpu_embedding)


class EmbeddingLike(Protocol):
    """What :func:`embed_edges` has to know."""

    form: EmbeddingForm | None

    def reference(self, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """The same in plain torch."""
        ...

    def reduced_length(self, length: Tensor, graph: AtomGraph) -> Tensor:
        """Lengths over each edge's cutoff."""
        ...


def embed_edges(module: EmbeddingLike, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
    """Radial functions and harmonics of edges by the backend in force.

    Args:
        module: has the form, and computes the same in plain torch.
        vectors: (E, 3) Å.
        graph: the edges' atoms and species.

    Returns:
        (E, B), (E, (l_max + 1)²).
    """
    backend = _EMBED_EDGES.backend(vectors, nothing=module.form is None)
    kernels = _EMBED_EDGES.kernels(backend, module.form, vectors.dtype)
    if kernels is None:
        return module.reference(vectors, graph)
    inverse = module.reduced_length(vectors.new_ones(vectors.shape[0]), graph)
    return embed(kernels, lambda v: module.reference(v, graph), vectors.contiguous(), inverse.contiguous())


def embed(op: CpuEmbedding, reference: Reference, vectors: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """(E, 3), (E,) inverse cutoffs -> (E, B), (E, K), differentiable to any order."""
    out: tuple[Tensor, Tensor] = differentiable(EmbeddingOperation(op, inverse, reference), vectors)
    return out


class EmbeddingOperation(Operation):
    """Of the vectors.

    Args:
        kernels: of the form.
        inverse: (E,) of the cutoffs.
        reference: the same in plain torch, for autograd.
    """

    def __init__(self, kernels: CpuEmbedding, inverse: Tensor, reference: Reference | None = None) -> None:
        self.kernels, self._reference, self.inverse = kernels, reference, inverse
        self.leaf = leaf_geometry()

    def forward(self, *x: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernels.run(0, *x, self.inverse)

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        return (self.kernels.run(1, *x, self.inverse, *g)[0],)

    def second(
        self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None
    ) -> Tensors | None:
        assert h[0] is not None
        return None if wanted[0] else (None, *self.kernels.run(2, *x, self.inverse, h[0].contiguous()))

    def reference(self, *x: Tensor) -> tuple[Tensor, Tensor]:
        assert self._reference is not None
        return self._reference(*x)
