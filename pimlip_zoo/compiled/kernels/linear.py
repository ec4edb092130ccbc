"""Linear maps that commute with rotations compiled: tiles of rows, one small matrix product per irrep component.

With weights by species the tiles hold rows of one species each, so that no row needs a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pimlip_zoo.compiled.kernels.bridge import Given, Operation, Tensors, Wanted
from pimlip_zoo.compiled.kernels.generate import Target, kernel_head, prelude
from pimlip_zoo.compiled.kernels.library import FormLibrary
from pimlip_zoo.compiled.kernels.mlp_source import mlp_functions
from pimlip_zoo.compiled.kernels.watch import watchers

TILE = 32
"""Rows that are worked on together."""


@dataclass(frozen=True)
class LinearPart:
    """One irrep: ``out[first_out + m copies_out ...] = scale * x[first_in + m copies_in ...] W`` for all m."""

    first_in: int
    copies_in: int
    first_out: int
    copies_out: int
    dim: int
    scale: float


@dataclass(frozen=True)
class LinearForm:
    """(rows, dim_in, channels_in) -> (rows, dim_out, channels_out); what no block writes is zero."""

    dim_in: int
    dim_out: int
    channels_in: int
    channels_out: int
    blocks: tuple[LinearPart, ...]
    """Ascending in what they write."""
    num_species: int = 1
    """S: how many sets of weights there are."""

    def shape(self, block: LinearPart) -> tuple[int, int]:
        """Of the block's weights."""
        return block.copies_in * self.channels_in, block.copies_out * self.channels_out

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each block's weights begin among those of one species, and their number."""
        return tuple(accumulate((a * b for a, b in map(self.shape, self.blocks)), initial=0))


class RowTiles:
    """Which rows are worked on together.

    Args:
        rows: how many there are.
        species: (rows,) int64, where weights depend on it.
    """

    def __init__(self, rows: int, species: Tensor | None = None) -> None:
        self.rows = rows
        self.order: Tensor | None = None
        self.species: Tensor | None = None
        for watcher in watchers():
            watcher.made(self, species, rows)
        if species is None:
            self.first = torch.arange(0, rows + TILE, TILE)[: -(-rows // TILE) + 1].clamp(max=rows)
            return
        self.order = torch.argsort(species, stable=True)
        counts = torch.bincount(species).tolist()
        first: list[int] = []
        kinds: list[int] = []
        begin = 0
        for kind, count in enumerate(counts):
            first += range(begin, begin + count, TILE)
            kinds += [kind] * (-(-count // TILE))
            begin += count
        self.first = torch.tensor([*first, rows])
        self.species = torch.tensor(kinds, dtype=torch.int32)
        self.order = self.order.to(torch.int32)


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def row_tiles(rows: int, species: Tensor | None = None) -> RowTiles:
    """The tiles of so many rows; those by species are made once for as long as its tensor lives unchanged."""
    if species is None:
        return RowTiles(rows) if watchers() else _plain_tiles(rows)
    known = _known.get(species)
    # Its version counts writes in place, which nothing public tells: the same tensor may hold other species.
    if known is not None and known[0] == species._version:  # noqa: SLF001
        tiles: RowTiles = known[1]
        return tiles
    tiles = RowTiles(rows, species)
    _known[species] = (species._version, tiles)  # noqa: SLF001
    return tiles


@lru_cache(maxsize=64)
def _plain_tiles(rows: int) -> RowTiles:
    return RowTiles(rows)


@dataclass(frozen=True)
class LinearSweep:
    """``kind`` 0: ``x W``. 1: ``g W^T``. 2: ``h W^T`` and ``x^T h``, plus ``t^T g`` with ``tangents``."""

    kind: int
    wants_input: bool = True
    wants_weights: bool = False
    tangents: bool = False


_sweep = cache(LinearSweep)
"""One of each: what they are made for is asked for at every step."""


class CpuLinear(FormLibrary[LinearForm]):
    """The kernels of one form."""

    def source(self, kernel: Hashable, machine: Target) -> str:
        assert isinstance(kernel, LinearSweep)
        lines = [
            "#include <stdlib.h>",
            *prelude(machine, [machine.lanes]),
            *mlp_functions(machine, TILE),
            *kernel_head(),
            *_Writer(self.form, kernel, machine).lines(),
            "}",
        ]
        return "\n".join([*lines, ""])

    def run(
        self,
        kernel: LinearSweep,
        tiles: RowTiles,
        weights: Tensor,
        *,
        x: Tensor | None = None,
        t: Tensor | None = None,
        g: Tensor | None = None,
        h: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(output or gradient of the input, gradient of the weights), None where it is not wanted.

        Args:
            kernel: which sweep.
            tiles: of the rows.
            weights: (S, offsets[-1]), the blocks' weights one after the other.
            x: (rows, dim_in, channels_in) input.
            t: its tangent.
            g: (rows, dim_out, channels_out) cotangent.
            h: the second one.
        """
        form = self.form
        shape = (form.dim_out, form.channels_out) if kernel.kind == 0 else (form.dim_in, form.channels_in)
        first = torch.empty((tiles.rows, *shape), dtype=self.dtype) if kernel.wants_input else None
        threads = torch.get_num_threads()
        sums = torch.empty((threads, *weights.shape), dtype=self.dtype) if kernel.wants_weights else None
        self.call(
            kernel,
            rows=len(tiles.first) - 1,
            work=None,
            lists=(tiles.first, tiles.order, tiles.species),
            operands=(x, t, None, None, weights, None, g, h),
            results=(first, sums, None),
        )
        return first, None if sums is None else sums[0] if threads == 1 else sums.sum(0)


class _Writer:
    """The loop over tiles of one kernel."""

    def __init__(self, form: LinearForm, kernel: LinearSweep, machine: Target) -> None:
        self.form, self.kernel, self.lanes = form, kernel, machine.lanes
        self.width = (form.dim_in * form.channels_in, form.dim_out * form.channels_out)
        # Whole vectors are read and written: what lies beyond a component is written again, or not used.
        self.stride = [self._padded(width) + self._padded(1) for width in self.width]

    def lines(self) -> list[str]:
        """Everything inside the function."""
        form, kernel = self.form, self.kernel
        packed, sizes = self._packed()
        sums = (
            [self._rows(a) * self._padded(b) for a, b in map(form.shape, form.blocks)]
            if kernel.wants_weights
            else []
        )
        names = {0: ["x", "o"], 1: ["g", "o"], 2: ["x", "h", "o", *(["t", "g"] if kernel.tangents else [])]}[
            kernel.kind
        ]
        buffers = {name: self.stride[self._side(name)] * TILE for name in names}
        scratch, per_species = sum(buffers.values()) + 64, sum(sums)
        out = [
            f"T *memory = allocate({form.num_species * sum(sizes)});",
            f"for (int s = 0; s < {form.num_species}; s++) {{",
            f"const T *flat = w0 + s * {form.offsets[-1]}; T *to = memory + s * {sum(sizes)};",
            *packed,
            "}",
            "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static, 1)",
            "for (int64_t t = 0; t < threads; t++) {",
            f"T *local = allocate({scratch + form.num_species * per_species});",
            f"memset(local, 0, sizeof(T) * {scratch + form.num_species * per_species});",
        ]
        offset = 0
        for name, size in buffers.items():
            out.append(f"T *b{name} = local + {offset};")
            offset += size
        out += [
            "for (int64_t tile = t * rows / threads; tile < (t + 1) * rows / threads; tile++) {",
            "const int64_t begin = first[tile], count = first[tile + 1] - begin;",
            "const int64_t s = slot ? slot[tile] : 0;",
            f"const T *w = memory + s * {sum(sizes)};",
            f"T *d = local + {scratch} + s * {per_species};",
            *self._tile(sums, sizes),
            "}",
        ]
        if kernel.wants_weights:
            out.append(f"for (int s = 0; s < {form.num_species}; s++) {{")
            begin = 0
            for block, at, size in zip(form.blocks, form.offsets, sums, strict=False):
                a, b = form.shape(block)
                out.append(
                    f"unpack(local + {scratch + begin} + s * {per_species}, {self._padded(b)}, {a}, {b}, "
                    f"(T){block.scale!r}, out1 + (t * {form.num_species} + s) * {form.offsets[-1]} + {at});"
                )
                begin += size
            out.append("}")
        return [*out, "free(local);", "}", "free(memory);"]

    def _packed(self) -> tuple[list[str], list[int]]:
        """Weights with rows of whole vectors, transposed for cotangents; and how many numbers each block takes."""
        lines: list[str] = []
        sizes: list[int] = []
        for block, at in zip(self.form.blocks, self.form.offsets, strict=False):
            a, b = self.form.shape(block)
            name, rows, columns = ("pack", a, b) if self.kernel.kind == 0 else ("pack_transposed", b, a)
            target = f"to + {sum(sizes)}, {self._padded(columns)}"
            lines.append(f"{name}(flat + {at}, {a}, {b}, (T){block.scale!r}, {target});")
            sizes.append(rows * self._padded(columns))
        return lines, sizes

    def _tile(self, sums: list[int], sizes: list[int]) -> list[str]:
        kernel, out = self.kernel, []
        sources = {"x": "x0", "t": "x1", "g": "g0", "h": "g1"}
        used = {0: "x", 1: "g", 2: "xh" + ("tg" if kernel.tangents else "")}[kernel.kind]
        for name in used:
            side = self._side(name)
            out += [
                f"for (int64_t j = 0; j < {TILE}; j++) {{",
                f"T *at = b{name} + j * {self.stride[side]};",
                "if (j < count) { const int64_t r = row ? row[begin + j] : begin + j;",
                f"memcpy(at, {sources[name]} + r * {self.width[side]}, sizeof(T) * {self.width[side]}); }}",
                f"else memset(at, 0, sizeof(T) * {self.width[side]}); }}",
            ]
        if kernel.wants_weights:
            begin = 0
            for block, size in zip(self.form.blocks, sums, strict=True):
                for m in range(block.dim):
                    out.append(self._outer("x", "h", block, m, begin))
                    if kernel.tangents:
                        out.append(self._outer("t", "g", block, m, begin))
                begin += size
        if kernel.wants_input:
            out += self._products(sizes)
        return out

    def _products(self, sizes: list[int]) -> list[str]:
        """The output's or the input's tile, stored."""
        form, forward = self.form, self.kernel.kind == 0
        source = {0: "x", 1: "g", 2: "h"}[self.kernel.kind]
        side = 1 if forward else 0
        out = [f"memset(bo, 0, sizeof(T) * {self.stride[side] * TILE});"]
        at = [sum(sizes[:n]) for n in range(len(sizes))]
        order = sorted(
            zip(form.blocks, at, strict=True),
            key=lambda pair: pair[0].first_out if forward else pair[0].first_in,
        )
        for block, begin in order:
            a, b = form.shape(block)
            inner, columns = (a, b) if forward else (b, a)
            for m in range(block.dim):
                start_in, start_out = self._start(block, m)
                start, end = (start_in, start_out) if forward else (start_out, start_in)
                width = self._padded(columns)
                out.append(
                    f"product({TILE}, {inner}, {width // self.lanes}, b{source} + {start}, {self.stride[1 - side]}, 1, "
                    f"w + {begin}, {width}, bo + {end}, {self.stride[side]}, 0);"
                )
        return [
            *out,
            "for (int64_t j = 0; j < count; j++) { const int64_t r = row ? row[begin + j] : begin + j;",
            f"memcpy(out0 + r * {self.width[side]}, bo + j * {self.stride[side]}, sizeof(T) * {self.width[side]}); }}",
        ]

    def _outer(self, left: str, right: str, block: LinearPart, m: int, begin: int) -> str:
        """``d += left^T right`` over the rows of the tile."""
        a, b = self.form.shape(block)
        start_in, start_out = self._start(block, m)
        width = self._padded(b)
        return (
            f"product({self._rows(a)}, {TILE}, {width // self.lanes}, b{left} + {start_in}, 1, {self.stride[0]}, "
            f"b{right} + {start_out}, {self.stride[1]}, d + {begin}, {width}, 1);"
        )

    def _start(self, block: LinearPart, m: int) -> tuple[int, int]:
        return (
            (block.first_in + m * block.copies_in) * self.form.channels_in,
            (block.first_out + m * block.copies_out) * self.form.channels_out,
        )

    def _side(self, name: str) -> int:
        """0: as wide as the input; 1: as the output."""
        if name == "o":
            return 1 if self.kernel.kind == 0 else 0
        return 0 if name in "xt" else 1

    def _padded(self, size: int) -> int:
        return -(-size // self.lanes) * self.lanes

    def _rows(self, size: int) -> int:
        return -(-size // 8) * 8


@cache
def cpu_linear(form: LinearForm, dtype: torch.dtype) -> CpuLinear:
    """The kernels of this form, shared by all modules that have it."""
    return CpuLinear(form, dtype)


class LinearOperation(Operation):
    """``x W`` of (x, W), W (S, all weights) by the species of a row."""

    parameters = (1,)
    multilinear = True

    def __init__(self, kernels: CpuLinear, tiles: RowTiles) -> None:
        self.kernels, self.tiles = kernels, tiles

    def forward(self, *x: Tensor) -> Tensor:
        out = self._run(_sweep(0), x[1], x=x[0])[0]
        assert out is not None
        return out

    def adjoint(self, x: Given, g: Given, wanted: Wanted) -> Tensors:
        if wanted[1]:
            return self._run(_sweep(2, wanted[0], True), x[1], x=x[0], h=g[0])
        return self._run(_sweep(1), x[1], g=g[0]) if wanted[0] else (None, None)

    def second(
        self, x: Given, g: Tensors, h: Tensors, wanted: Wanted, more: Tensor | None = None
    ) -> Tensors | None:
        t = h[0]
        if t is None or h[1] is not None:
            return None
        by_x = by_w = None
        if more is not None:
            by_x, by_w = self._run(
                _sweep(2, wanted[0], True, tangents=True), x[1], x=x[0], t=t, g=g[0], h=more
            )
        elif wanted[1]:
            by_w = self._run(_sweep(2, False, True), x[1], x=t, h=g[0])[1]
        return by_x, by_w, self._run(_sweep(0), x[1], x=t)[0] if wanted[2] else None

    def _run(
        self, kernel: LinearSweep, weights: Tensor, **operands: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.kernels.run(kernel, self.tiles, weights, **operands)
