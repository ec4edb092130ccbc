"""Small multilayer perceptrons compiled: rows in tiles that stay in cache, nothing between the layers is stored.

Three kernels: the output; its gradients; and the derivatives of a gradient with respect to the input, which is what
training on forces needs. Intermediate values are computed again rather than kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.bridge import Given, Tensors, Wanted, differentiable
from pimlip_zoo.compiled.kernels.dispatch import compiled_operation
from pimlip_zoo.compiled.kernels.generate import Target, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import FormLibrary
from pimlip_zoo.compiled.kernels.mlp_source import mlp_functions
from pimlip_zoo.compiled.kernels.swept import Sweep, SweptOperation


@dataclass(frozen=True)
class MLPForm:
    """Layers without bias, ``h_l = scale_l a_{l-1} W_l``, ``a_l = gain silu(h_l)`` between them."""

    sizes: tuple[int, ...]
    """Widths from the input to the output."""
    scales: tuple[float, ...]
    """Factor of each layer."""
    gain: float
    """Factor of the activation."""

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each layer's weights begin among all, and their number."""
        return tuple(accumulate((a * b for a, b in pairwise(self.sizes)), initial=0))


@dataclass(frozen=True)
class MLPSweep(Sweep):
    """With where the input comes from, and what is kept."""

    keeps: bool = False
    """The output's kernel leaves the derivatives of the activations for the gradient of the input, which then needs
    neither the input nor the layers below again."""
    pieces: tuple[tuple[int, int], ...] = ()
    """Columns of what comes in, of the input or, where slopes were kept, of the cotangent, that are in arrays of their
    own: their width and the distance of their rows; see :attr:`incoming`."""

    @property
    def incoming(self) -> tuple[str, ...]:
        """Operands that the pieces are, or the first of them the whole."""
        return ("x0", "x1", "y0", "y1") if self.kind == 0 else ("g0", "x0", "x1", "y0")


_FORWARD = MLPSweep(0)
_KEEPING, _KEPT = MLPSweep(0, keeps=True), MLPSweep(1, True, keeps=True)


class CpuMLP(FormLibrary[MLPForm]):
    """The kernels of one perceptron."""

    value = _FORWARD

    def source(self, kernel: Hashable, machine: Target) -> str:
        assert isinstance(kernel, MLPSweep)
        body = _Writer(self.form, kernel, machine)
        lines = [
            *prelude(machine, [machine.lanes]),
            *mlp_functions(machine),
            *kernel_head(),
            *body.lines(),
            "}",
        ]
        return "\n".join(["#include <stdlib.h>", *lines, ""])

    def run(
        self,
        kernel: MLPSweep,
        x: Tensor,
        weights: Tensor,
        g: Tensor | None = None,
        v: Tensor | None = None,
        h: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(output or gradient of the input, gradient of the weights or what is kept, derivative with respect to g)."""
        form, rows = self.form, x.shape[0]
        width = form.sizes[-1] if kernel.kind == 0 else form.sizes[0]
        first = torch.empty((rows, width), dtype=x.dtype) if kernel.kind == 0 or kernel.wants_input else None
        threads = torch.get_num_threads()
        sums = torch.empty((threads, form.offsets[-1]), dtype=x.dtype) if kernel.wants_weights else None
        if kernel.keeps and kernel.kind == 0:
            sums = torch.empty(rows * sum(form.sizes[1:-1]), dtype=x.dtype)
        third = torch.empty((rows, form.sizes[-1]), dtype=x.dtype) if kernel.wants_cotangent else None
        self.call(
            kernel,
            rows=rows,
            work=None,
            operands=(None if kept is not None else x, v, None, None, weights, kept, g, h),
            results=(first, sums, third),
        )
        if kernel.wants_weights and sums is not None:
            sums = sums[0] if threads == 1 else sums.sum(0)
        return first, sums, third


class _Writer:
    """The loop over tiles of one kernel."""

    def __init__(self, form: MLPForm, kernel: MLPSweep, machine: Target) -> None:
        self.form, self.kernel, self.lanes = form, kernel, machine.lanes
        self.layers = len(form.sizes) - 1
        self.padded = [-(-size // machine.lanes) * machine.lanes for size in form.sizes]
        self.buffers: list[tuple[str, int]] = []

    def buffer(self, name: str, layer: int) -> str:
        """Declare a tile of this layer's width."""
        self.buffers.append((name, self.padded[layer]))
        return name

    def lines(self) -> list[str]:
        """Everything inside the function."""
        tile = self._tile()
        form, kernel = self.form, self.kernel
        weights = [
            f"T *w{n} = memory + {sum(a * self.padded[i + 1] for i, a in enumerate(form.sizes[:-1][:n]))};"
            for n in range(self.layers)
        ]
        total = sum(a * self.padded[i + 1] for i, a in enumerate(form.sizes[:-1]))
        weights += [
            f"T *u{n} = memory + {total + sum(form.sizes[i + 1] * self.padded[i] for i in range(n))};"
            for n in range(self.layers)
        ]
        total += sum(form.sizes[i + 1] * self.padded[i] for i in range(self.layers))
        fill = []
        for n in range(self.layers):
            a, b = form.sizes[n], form.sizes[n + 1]
            sources = f"flat + {form.offsets[n]}, {a}, {b}, (T){form.scales[n]!r}"
            if not (kernel.kind and kernel.keeps):
                fill.append(f"pack({sources}, w{n}, {self.padded[n + 1]});")
            if kernel.kind:
                fill.append(f"pack_transposed({sources}, u{n}, {self.padded[n]});")
        size = sum(width for _, width in self.buffers) * TILE
        sums, per_thread = [], 0
        if kernel.wants_weights:
            for n in range(self.layers):
                sums.append(f"T *d{n} = local + {size + per_thread};")
                per_thread += self._rows(n) * self.padded[n + 1]
        out = ["const T *flat = w0, *kept = w1;", f"T *memory = allocate({total});", "{", *weights, *fill]
        out += [
            f"const int64_t tiles = (rows + {TILE - 1}) / {TILE};",
            "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static, 1)",
            "for (int64_t t = 0; t < threads; t++) {",
            f"T *local = allocate({size + per_thread});",
            f"memset(local, 0, sizeof(T) * {size + per_thread});",
            *sums,
        ]
        offset = 0
        for name, width in self.buffers:
            out.append(f"T *{name} = local + {offset};")
            offset += width * TILE
        out += [
            "for (int64_t tile = t * tiles / threads; tile < (t + 1) * tiles / threads; tile++) {",
            f"const int64_t begin = tile * {TILE};",
            f"const int64_t count = rows - begin < {TILE} ? rows - begin : {TILE};",
            *tile,
            "}",
        ]
        if kernel.wants_weights:
            out.append(f"T *mine = out1 + t * {form.offsets[-1]};")
            out += [
                f"unpack(d{n}, {self.padded[n + 1]}, {form.sizes[n]}, {form.sizes[n + 1]}, "
                f"(T){form.scales[n]!r}, mine + {form.offsets[n]});"
                for n in range(self.layers)
            ]
        return [*out, "free(local);", "}", "}", "free(memory);"]

    def _tile(self) -> list[str]:
        """What is done with a tile of rows."""
        kernel = self.kernel
        if kernel.kind == 0:
            return [*self._incoming("a", 0), *self._upward()]
        if kernel.keeps:
            return [*self._kept(), *self._incoming("b", self.layers), *self._downward()]
        out = [*self._load("x0", "a0", 0), *self._upward()]
        if kernel.wants_input or kernel.wants_weights:
            out += self._load("g0", f"b{self.layers}", self.layers)
            out += self._load("g1", f"c{self.layers}", self.layers) if kernel.adds else []
            out += self._downward()
        return out

    def _rows(self, layer: int) -> int:
        return -(-self.form.sizes[layer] // 8) * 8

    def _load(self, source: str, name: str, layer: int) -> list[str]:
        size = self.form.sizes[layer]
        self.buffer(name, layer)
        return [f"load_rows({source} + begin * {size}, count, {size}, {name}, {self.padded[layer]});"]

    def _incoming(self, name: str, layer: int) -> list[str]:
        """The tile of the input or of the cotangent, from one array or from pieces."""
        if not self.kernel.pieces:
            return self._load(self.kernel.incoming[0], f"{name}{layer}", layer)
        target, ld = self.buffer(f"{name}{layer}", layer), self.padded[layer]
        out, column = [], 0
        for source, (width, distance) in zip(self.kernel.incoming, self.kernel.pieces, strict=False):
            first = f"{source} + begin * {distance}"
            out.append(f"load_part({first}, {distance}, count, {width}, {target} + {column}, {ld});")
            column += width
        return out

    def _place(self, layer: int) -> str:
        """Where what is kept of a hidden layer begins."""
        return f"rows * {sum(self.form.sizes[1:layer])}"

    def _kept(self) -> list[str]:
        """The activations' derivatives that the output's kernel left."""
        return [
            line for n in range(1, self.layers) for line in self._load(f"kept + {self._place(n)}", f"f{n}", n)
        ]

    def _store(self, name: str, layer: int, target: str) -> str:
        size = self.form.sizes[layer]
        return f"store_rows({name}, {self.padded[layer]}, count, {size}, {target} + begin * {size});"

    def _times(self, a: str, n: int, result: str, *, transposed: bool = False) -> str:
        """``result = a W_n`` or ``a W_n^T``."""
        source, target = (n + 1, n) if transposed else (n, n + 1)
        weights = f"u{n}" if transposed else f"w{n}"
        return (
            f"product({TILE}, {self.form.sizes[source]}, {self.padded[target] // self.lanes}, {a}, "
            f"{self.padded[source]}, 1, {weights}, {self.padded[target]}, {result}, {self.padded[target]}, 0);"
        )

    def _outer(self, a: str, b: str, n: int) -> str:
        """``d_n += a^T b`` over the rows of the tile."""
        return (
            f"product({self._rows(n)}, {TILE}, {self.padded[n + 1] // self.lanes}, {a}, 1, {self.padded[n]}, "
            f"{b}, {self.padded[n + 1]}, d{n}, {self.padded[n + 1]}, 1);"
        )

    def _upward(self) -> list[str]:
        """Activations of all layers, with first and second derivatives as the kernel needs them, and tangents."""
        kind, last, out = self.kernel.kind, self.layers, []
        if kind == 2:
            out += self._load("x1", "e0", 0)
        for n in range(last):
            if kind == 0 or n + 1 < last:
                out.append(self._times(f"a{n}", n, self.buffer(f"a{n + 1}", n + 1)))
            if kind == 2 and (n + 1 < last or self.kernel.wants_cotangent):
                out.append(self._times(f"e{n}", n, self.buffer(f"e{n + 1}", n + 1)))
            if n + 1 < last:
                out += self._activate(n + 1)
        if kind == 0:
            out.append(self._store(f"a{last}", last, "out0"))
        if self.kernel.wants_cotangent:
            out.append(self._store(f"e{last}", last, "out2"))
        return out

    def _activate(self, layer: int) -> list[str]:
        """The activation of a hidden layer, with what the kernel needs or leaves of its derivatives."""
        kind, names = self.kernel.kind, [f"a{layer}"]
        slopes = kind > 0 or self.kernel.keeps
        if slopes:
            names.append(self.buffer(f"f{layer}", layer))
        if kind == 2:
            names += [self.buffer(f"s{layer}", layer), f"e{layer}"]
        count = f"{TILE * self.padded[layer]}, (T){self.form.gain!r}"
        out = [f"activate{max(kind, int(slopes))}({count}, {', '.join(names)});"]
        if kind == 0 and slopes:
            out.append(self._store(f"f{layer}", layer, f"out1 + {self._place(layer)}"))
        return out

    def _downward(self) -> list[str]:
        """Cotangents of all layers: b of the values or, in the second kind, of the tangents, then c of the values."""
        kind, out, kernel = self.kernel.kind, [], self.kernel
        has_c = kernel.adds
        for n in reversed(range(self.layers)):
            if kernel.wants_weights:
                out.append(self._outer(f"a{n}" if kind == 1 else f"e{n}", f"b{n + 1}", n))
                if has_c:
                    out.append(self._outer(f"a{n}", f"c{n + 1}", n))
            if n > 0:
                out.append(self._times(f"b{n + 1}", n, self.buffer(f"b{n}", n), transposed=True))
                if kind == 2:
                    c = self.buffer(f"c{n}", n)
                    if has_c:
                        out.append(self._times(f"c{n + 1}", n, c, transposed=True))
                    out.append(f"cotangents({TILE * self.padded[n]}, f{n}, s{n}, b{n}, {c}, {int(has_c)});")
                    has_c = True
                else:
                    out.append(f"scale({TILE * self.padded[n]}, f{n}, b{n});")
        source = "b1" if kind == 1 else "c1" if has_c else None
        if kernel.wants_input:
            result = self.buffer("r0", 0)
            if source is not None:
                out.append(self._times(source, 0, result, transposed=True))
            out.append(self._store(result, 0, "out0"))
        return out


TILE = 32
"""Rows that are worked on together."""


@cache
def cpu_mlp(form: MLPForm, dtype: torch.dtype) -> CpuMLP:
    """The kernels of this form, shared by all perceptrons that have it."""
    return CpuMLP(form, dtype)


_PERCEPTRON = compiled_operation("perceptron", cpu=cpu_mlp)


def perceptron(
    form: MLPForm | None, reference: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """A multilayer perceptron by the backend in force.

    Args:
        form: what is computed; None: no kernel does it.
        reference: the same in plain torch, with the weights.
        x: (rows, sizes[0]).
        weights: of the layers, (size, next size).

    Returns:
        (rows, sizes[-1]).
    """
    backend = _PERCEPTRON.backend(x, *weights, nothing=form is None)
    kernels = _PERCEPTRON.kernels(backend, form, x.dtype)
    return reference(x) if kernels is None else mlp(kernels, x.contiguous(), weights)


def mlp(op: CpuMLP, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(rows, sizes[0]) -> (rows, sizes[-1]), differentiable to any order."""
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    out: Tensor = differentiable(PerceptronOperation(op), x, flat)
    return out


class PerceptronOperation(SweptOperation):
    """Of (x, all weights).

    Args:
        kernels: of the form.
        keeps: leave the derivatives of the activations for the gradient of the input, where nothing else is wanted.
    """

    sweep = staticmethod(cache(MLPSweep))

    def __init__(self, kernels: CpuMLP, *, keeps: bool = False) -> None:
        self.kernels, self.keeps = kernels, keeps
        self._kept: Tensor | None = None

    def forward(self, *x: Tensor) -> Tensor:
        out, self._kept, _ = self.kernels.run(_KEEPING if self.keeps else _FORWARD, *x)
        assert out is not None
        return out

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        if self._kept is not None and not wanted[1]:
            return self.kernels.run(_KEPT, x[0], x[1], g[0], kept=self._kept)[0], None
        return super().adjoint(x, g, wanted)

    def reference(self, *x: Tensor) -> Tensor:
        form, (out, flat) = self.kernels.form, x
        for n, (a, b) in enumerate(pairwise(form.sizes)):
            if n:
                out = torch.nn.functional.silu(out) * form.gain
            out = out @ (flat[form.offsets[n] : form.offsets[n + 1]].view(a, b) * form.scales[n])
        return out
