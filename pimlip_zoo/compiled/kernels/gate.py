"""The gated nonlinearity compiled, with its first and second derivatives, vectors running over channels."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted
from pimlip_zoo.compiled.kernels.generate import Target, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import FormLibrary
from pimlip_zoo.compiled.kernels.mlp_source import mlp_functions

FUNCTIONS = ("silu", "tanh")
"""Activations that are known."""

FORWARD, ADJOINT, TANGENT, SECOND = range(4)
"""What kernels compute."""


@dataclass(frozen=True)
class GatedScalar:
    """``out[target] = factor * f(x[source])``, or a gate that multiplies the components of an irrep."""

    function: str
    """silu or tanh."""
    factor: float
    source: int
    """Row of x that f acts on."""
    target: int
    """Row of out; of a gate, the first of those that it multiplies."""
    gated: tuple[int, ...] = ()
    """Rows of x where each component begins that is multiplied; none: the scalar is passed on itself."""
    width: int = 1
    """Rows of each component: how many times the channels there are."""


@dataclass(frozen=True)
class GateForm:
    """(rows, dim_in, C) -> (rows, dim_out, C)."""

    dim_in: int
    dim_out: int
    scalars: tuple[GatedScalar, ...]


class CpuGate(FormLibrary[GateForm]):
    """The kernels of one form for one number of channels and one dtype."""

    def source(self, kernel: Hashable, machine: Target) -> str:
        lanes, channels = machine.lanes, self.channels
        lines = [
            "#include <stdlib.h>",
            *prelude(machine, [lanes]),
            *mlp_functions(machine),
            "static inline V load(const T *p, int n) { V v = {0}; memcpy(&v, p, sizeof(T) * n); return v; }",
            *kernel_head(),
            "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)",
            "for (int64_t n = 0; n < rows; n++) {",
        ]
        dim_in, dim_out = self.form.dim_in * channels, self.form.dim_out * channels
        sides = {"x0": dim_in, "x1": dim_in, "g0": dim_out, "g1": dim_out}
        lines += [f"const T *restrict p{name} = {name} + n * {dim};" for name, dim in sides.items()]
        lines.append(f"T *restrict o = out0 + n * {dim_out if kernel in (FORWARD, TANGENT) else dim_in};")
        for width in sorted({scalar.width for scalar in self.form.scalars}, reverse=True):
            scalars = [scalar for scalar in self.form.scalars if scalar.width == width]
            size = width * channels
            whole = size // lanes * lanes
            for begin, end, count in ((0, whole, lanes), (whole, size, size - whole)):
                if end > begin:
                    lines.append(f"for (int c = {begin}; c < {end}; c += {lanes}) {{")
                    for scalar in scalars:
                        lines += ["{", *self._scalar(scalar, int(str(kernel)), count), "}"]
                    lines.append("}")
        return "\n".join([*lines, "}}", ""])

    def _scalar(self, scalar: GatedScalar, kernel: int, count: int) -> list[str]:
        load = lambda name, k: f"load(p{name} + {k * self.channels} + c, {count})"  # noqa: E731
        store = lambda k, text: (  # noqa: E731
            f"{{ const V v_ = {text}; memcpy(o + {k * self.channels} + c, &v_, sizeof(T) * {count}); }}"
        )
        out = _function(scalar, load("x0", scalar.source), kernel)
        if kernel in (TANGENT, SECOND):
            out.append(f"const V y = {load('x1', scalar.source)};")
        if not scalar.gated:
            first, second = load("g0", scalar.target), load("g1", scalar.target)
            results = {
                FORWARD: "a",
                ADJOINT: f"f * {first}",
                TANGENT: "f * y",
                SECOND: f"f * {second} + d * y * {first}",
            }
            return [
                *out,
                store(scalar.target if kernel in (FORWARD, TANGENT) else scalar.source, results[kernel]),
            ]
        if kernel not in (FORWARD, TANGENT):
            out += ["V total = {0};", *(["V again = {0};"] if kernel == SECOND else [])]
        for number, k in enumerate(scalar.gated):
            target = scalar.target + number * scalar.width
            x, t = load("x0", k), load("x1", k)
            g, h = load("g0", target), load("g1", target)
            if kernel == FORWARD:
                out.append(store(target, f"{x} * a"))
            elif kernel == TANGENT:
                out.append(store(target, f"{t} * a + {x} * (f * y)"))
            elif kernel == SECOND:
                out.append(f"{{ const V x = {x}, g = {g}, h = {h}; again += x * g;")
                out += [f"total += x * h + {t} * g;", store(k, "h * a + g * (f * y)"), "}"]
            else:
                out += [f"{{ const V g = {g}; total += {x} * g;", store(k, "g * a"), "}"]
        if kernel not in (FORWARD, TANGENT):
            out.append(store(scalar.source, "f * total" + (" + d * y * again" if kernel == SECOND else "")))
        return out

    def run(
        self,
        kernel: int,
        x: Tensor,
        *,
        t: Tensor | None = None,
        g: Tensor | None = None,
        h: Tensor | None = None,
    ) -> Tensor:
        """The output or its tangent, or a cotangent of the input.

        Args:
            kernel: FORWARD, ADJOINT (of g), TANGENT (of t) or SECOND (of t, g, h).
            x: (rows, dim_in, C).
            t: its tangent.
            g: (rows, dim_out, C) cotangent.
            h: the second one.
        """
        dim = self.form.dim_out if kernel in (FORWARD, TANGENT) else self.form.dim_in
        out = torch.empty((x.shape[0], dim, self.channels), dtype=self.dtype)
        self.call(
            kernel,
            rows=x.shape[0],
            work=out.numel() * 8,
            operands=(x, t, None, None, None, None, g, h),
            results=(out, None, None),
        )
        return out


def _function(scalar: GatedScalar, argument: str, kernel: int) -> list[str]:
    """``a``, its derivative ``f`` and second derivative ``d`` as the sweep needs them."""
    factor = f"(T){scalar.factor!r}"
    one = "(T)1"
    out = [f"const V z = {argument};"]
    if scalar.function == "silu":
        out.append("const V s = logistic(z);")
        a, f = "z * s", f"s + z * s * ({one} - s)"
        d = f"s * ({one} - s) * ((T)2 + z * ({one} - (T)2 * s))"
    else:
        out.append(f"const V s = (T)2 * logistic((T)2 * z) - {one};")
        a, f, d = "s", f"{one} - s * s", f"(T)-2 * s * ({one} - s * s)"
    if kernel == FORWARD or scalar.gated:
        out.append(f"const V a = {factor} * ({a});")
    if kernel != FORWARD:
        out.append(f"const V f = {factor} * ({f});")
    if kernel == SECOND:
        out.append(f"const V d = {factor} * ({d});")
    return out


@cache
def cpu_gate(form: GateForm, channels: int, dtype: torch.dtype) -> CpuGate:
    """The kernels of this form, shared by all modules that have it."""
    return CpuGate(form, dtype, channels)


class GateOperation(Operation):
    """The gated nonlinearity of x."""

    def __init__(self, kernels: CpuGate) -> None:
        self.kernels = kernels

    def forward(self, *x: Tensor) -> Tensor:
        return self.kernels.run(FORWARD, x[0])

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        return (self.kernels.run(ADJOINT, x[0], g=g[0]),)

    def second(self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None) -> Tensors:
        by_x = by_g = None
        if wanted[0] and g[0] is not None:
            more = torch.zeros_like(g[0]) if more is None else more
            by_x = self.kernels.run(SECOND, x[0], t=h[0], g=g[0], h=more)
        if wanted[1]:
            by_g = self.kernels.run(TANGENT, x[0], t=h[0])
        return by_x, by_g
