"""The convolution's sums over edges as triton functions, one program for each atom or edge and block of channels.

What a program needs of its edges lives in registers; it alone writes its rows, so results do not depend on the order
in which programs run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.convolution.form import EdgeSum, NodeSum, Operands, Path, TrilinearForm
from pimlip_zoo.compiled.kernels.convolution.source import Coupling, products_around
from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.launch import Block, Launcher, Source, indented

_ACCUMULATORS = 48  # results that one program holds; a thread has 255 registers


class TritonConvolution:
    """The sums of one trilinear form for one number of channels and one dtype.

    Args:
        form: what is computed.
        channels: C.
        dtype: float32 or float64.
    """

    def __init__(self, form: TrilinearForm, channels: int, dtype: torch.dtype) -> None:
        self.form, self.channels, self.dtype = form, channels, dtype
        self._launcher = Launcher(self._source, Block(channels, dtype))

    def prepare(self, *kernels: NodeSum | EdgeSum) -> None:
        """Nothing: triton compiles at the first launch."""

    def _source(self, kernel: NodeSum | EdgeSum) -> Source:
        block = Block(self.channels, self.dtype)
        if isinstance(kernel, NodeSum):
            return node_sum_source(self.form, kernel, block)
        return edge_sum_source(self.form, kernel, block)

    def node_sum(
        self, kernel: NodeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> Tensor:
        """Run a :class:`NodeSum`; operands are pairs (itself, tangent), None where it is not read."""
        inward = kernel.side == "in"
        dim = self.form.dim_in if inward else self.form.dim_out
        reached = {k for path in self.form.paths for k in (path.inputs if inward else path.outputs)}
        out = self._new((edges.num_nodes, dim, self.channels), edges, whole=len(reached) == dim)
        first, row, slot = edges.by_neighbour if inward else edges.by_centre
        lists = {"first": first, "row": row, "slot": edges.every if slot is None else slot}
        self._launcher.run(kernel, edges.num_nodes, {**lists, **_named(x, y, w, g), "out0": out})
        return out

    def edge_sum(
        self, kernel: EdgeSum, edges: EdgeLists, x: Operands, y: Operands, w: Operands, g: Operands
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run an :class:`EdgeSum`: gradients of w (E, P, C) and of Y (E, K_edge), None where not wanted."""
        rows, form = edges.num_edges, self.form
        shape_w, every = (rows, form.num_paths, self.channels), len(form.paths) == form.num_paths
        out_w = self._new(shape_w, edges, whole=every) if kernel.weights else None
        out_y = self._new((rows, form.dim_edge), edges, whole=False) if kernel.harmonics else None
        lists = {"row": edges.neighbour, "slot": edges.centre}
        self._launcher.run(kernel, rows, {**lists, **_named(x, y, w, g), "out0": out_w, "out1": out_y})
        return out_w, out_y

    def _new(self, shape: tuple[int, ...], edges: EdgeLists, *, whole: bool) -> Tensor:
        """Where a kernel writes; zeros where it does not write everything."""
        make = torch.empty if whole else torch.zeros
        return make(shape, dtype=self.dtype, device=edges.centre.device)


def _named(x: Operands, y: Operands, w: Operands, g: Operands) -> dict[str, Tensor | None]:
    pairs = zip("xywg", (x, y, w, g), strict=True)
    return {f"{name}{variant}": tensor for name, pair in pairs for variant, tensor in enumerate(pair)}


@cache
def triton_convolution(form: TrilinearForm, channels: int, dtype: torch.dtype) -> TritonConvolution:
    """The kernels of a form, shared by all modules that compute it."""
    return TritonConvolution(form, channels, dtype)


def node_sum_source(form: TrilinearForm, kernel: NodeSum, block: Block) -> Source:
    """A :class:`NodeSum`: the grid's rows are atoms, its third axis groups of paths.

    ``first`` has each atom's slots, ``row[s]`` the atom that slot s gathers, ``slot[s]`` its edge.
    """
    names = [f"{name}{v}" for name, variants in _variants(kernel) for v in variants]
    body = [
        "i = tl.program_id(0).to(tl.int64)",
        f"c = tl.program_id(1) * {block.size} + tl.arange(0, {block.size})",
        "begin = tl.load(first + i)",
        "end = tl.load(first + i + 1)",
    ]
    groups = _groups(form.paths, inward=kernel.side == "in")
    for number, group in enumerate(groups):
        body += [
            f"if tl.program_id(2) == {number}:",
            *indented(_group_into_nodes(group, form, kernel, block)),
        ]
    return Source(("first", "row", "slot", *names, "out0"), tuple(body), max(1, len(groups)))


def _variants(kernel: NodeSum) -> list[tuple[str, list[int]]]:
    operands = ("g" if kernel.side == "in" else "x", "y", "w")
    return [(name, sorted({term[place] for term in kernel.terms})) for place, name in enumerate(operands)]


def _groups(paths: Sequence[Path], *, inward: bool) -> list[list[Path]]:
    """Paths whose results fit into registers together; a result belongs to one group, which alone writes it."""
    clusters: list[tuple[set[int], list[Path]]] = []
    for path in paths:
        results, members = set(path.inputs if inward else path.outputs), [path]
        for cluster in [c for c in clusters if c[0] & results]:
            clusters.remove(cluster)
            results |= cluster[0]
            members = cluster[1] + members
        clusters.append((results, members))
    groups: list[list[Path]] = []
    held = 0
    for results, members in clusters:
        if groups and held + len(results) <= _ACCUMULATORS:
            groups[-1] += members
            held += len(results)
        else:
            groups.append(list(members))
            held = len(results)
    return groups


def _group_into_nodes(group: list[Path], form: TrilinearForm, kernel: NodeSum, block: Block) -> list[str]:
    inward, width = kernel.side == "in", block.channels
    dim_source, dim_result = (form.dim_out, form.dim_in) if inward else (form.dim_in, form.dim_out)
    results = sorted({k for path in group for k in (path.inputs if inward else path.outputs)})
    (source, gathered), (_, y_variants), (_, w_variants) = _variants(kernel)
    coupling = Coupling(group)
    edge = [
        "n = tl.load(row + s).to(tl.int64)",
        "e = tl.load(slot + s).to(tl.int64)",
        *[f"p{source}{v} = {source}{v} + n * {dim_source * width} + c" for v in gathered],
        *[f"pw{v} = w{v} + e * {form.num_paths * width} + c" for v in w_variants],
    ]
    for y in y_variants:
        used = sorted({b for path in group for _, b, _, _ in path.terms})
        edge += [f"t{y}_{b} = tl.load(y{y} + e * {form.dim_edge} + {b})" for b in used]
        edge += [f"m{y}_{row} = {_weighted(parts, f't{y}_')}" for parts, row in coupling.rows.items()]
    for path in group:
        edge += _path_into_nodes(path, kernel, coupling, block)
    lines = [f"r{k} = {block.zeros()}" for k in results]
    lines += ["for s in range(begin, end):", *indented(edge)]
    target = f"out0 + i * {dim_result * width} + c"
    return [*lines, *(block.store(target, k, f"r{k}") for k in results)]


def _path_into_nodes(path: Path, kernel: NodeSum, coupling: Coupling, block: Block) -> list[str]:
    inward = kernel.side == "in"
    (source, gathered), (_, y_variants), (_, w_variants) = _variants(kernel)
    inputs, results = (path.outputs, path.inputs) if inward else (path.inputs, path.outputs)
    out = [f"s{v}_{k} = {block.load(f'p{source}{v}', k)}" for v in gathered for k in inputs]
    out += [f"q{v} = {block.load(f'pw{v}', path.index)}" for v in w_variants]
    meeting = []  # (component gathered, component of the result, row of m, sign)
    for a, k in dict.fromkeys((term[0], term[2]) for term in path.terms):
        row, negative = coupling.of[path.index, a, k]
        meeting.append((*((k, a) if inward else (a, k)), row, "-" if negative else "+"))
    if len(inputs) <= len(results):  # fewer products when the weights multiply what is gathered
        for y in y_variants:
            for k in inputs:
                scaled = " + ".join(f"q{w} * s{v}_{k}" for v, middle, w in kernel.terms if middle == y)
                out.append(f"a{y}_{k} = {scaled}")
            out += [f"r{k} {sign}= m{y}_{row} * a{y}_{c}" for c, k, row, sign in meeting]
        return out
    for w in w_variants:  # or when they multiply the result
        factors = [(v, y) for v, y, last in kernel.terms if last == w]
        for k in results:
            parts = [
                f"{sign} m{y}_{row} * s{v}_{c}"
                for v, y in factors
                for c, result, row, sign in meeting
                if result == k
            ]
            out.append(f"r{k} += q{w} * ({' '.join(parts).removeprefix('+ ')})")
    return out


def edge_sum_source(form: TrilinearForm, kernel: EdgeSum, block: Block) -> Source:
    """An :class:`EdgeSum`: the grid's rows are edges, ``row[e]`` the neighbour, ``slot[e]`` the centre of edge e.

    ``out0`` is the gradient of the weights, ``out1`` that of the harmonics, whose sum over channels one program makes.
    """
    width, both = block.channels, kernel.weights + kernel.harmonics
    x_variants, g_variants = (sorted({term[place] for term in both}) for place in (0, 2))
    y_variants = sorted({term[1] for term in kernel.weights})
    w_variants = sorted({term[1] for term in kernel.harmonics})
    used = sorted({b for _, _, b, _, _ in form.terms})
    body = ["e = tl.program_id(0).to(tl.int64)"]
    body += ["n = tl.load(row + e).to(tl.int64)"] if x_variants else []
    body += ["i = tl.load(slot + e).to(tl.int64)"] if g_variants else []
    body += [f"t{y}_{b} = tl.load(y{y} + e * {form.dim_edge} + {b})" for y in y_variants for b in used]
    body += [f"h{b} = {block.zeros()}" for b in used] if kernel.harmonics else []
    channels = [
        f"c = start + tl.arange(0, {block.size})",
        *[f"px{v} = x{v} + n * {form.dim_in * width} + c" for v in x_variants],
        *[f"pg{v} = g{v} + i * {form.dim_out * width} + c" for v in g_variants],
        *[f"pw{v} = w{v} + e * {form.num_paths * width} + c" for v in w_variants],
        f"po = out0 + e * {form.num_paths * width} + c" if kernel.weights else "",
    ]
    inputs = sorted({a for _, a, _, _, _ in form.terms})
    channels += [f"x{v}_{a} = {block.load(f'px{v}', a)}" for v in x_variants for a in inputs]
    for path in form.paths:
        channels += _path_into_edges(path, kernel, block)
    body += [f"for start in range(0, {width}, {block.size}):", *indented(channels)]
    if kernel.harmonics:
        body += [f"tl.store(out1 + e * {form.dim_edge} + {b}, tl.reduce(h{b}, 0, add))" for b in used]
    names = [f"x{v}" for v in x_variants] + [f"g{v}" for v in g_variants]
    names += [f"y{v}" for v in y_variants] + [f"w{v}" for v in w_variants]
    outs = ["out0"] * bool(kernel.weights) + ["out1"] * bool(kernel.harmonics)
    return Source(("row", "slot", *names, *outs), tuple(body), whole=True)


def _path_into_edges(path: Path, kernel: EdgeSum, block: Block) -> list[str]:
    """Per path ``S_b = sum coefficient x_a g_k``; then ``dw = sum Y_b S_b`` and ``dY_b = sum_c w S_b``."""
    variants = sorted({term[2] for term in kernel.weights + kernel.harmonics})
    out = [f"g{v}_{k} = {block.load(f'pg{v}', k)}" for v in variants for k in path.outputs]
    by_y = {y: products_around(kernel.weights, y) for y in sorted({t[1] for t in kernel.weights})}
    by_w = {w: products_around(kernel.harmonics, w) for w in sorted({t[1] for t in kernel.harmonics})}
    sums = {products: f"s{n}" for n, products in enumerate(dict.fromkeys([*by_y.values(), *by_w.values()]))}
    components = sorted({b for _, b, _, _ in path.terms})
    for products, name in sums.items():
        for a, k in dict.fromkeys((term[0], term[2]) for term in path.terms):
            out.append(f"{name}q{a}_{k} = " + " + ".join(f"x{x}_{a} * g{g}_{k}" for x, g in products))
        for b in components:
            parts = " + ".join(f"{value!r} * {name}q{a}_{k}" for a, d, k, value in path.terms if d == b)
            out.append(f"{name}_{b} = {parts}")
    if by_y:
        total = " + ".join(
            f"t{y}_{b} * {sums[products]}_{b}" for y, products in by_y.items() for b in components
        )
        out.append(block.store("po", path.index, total))
    for w, products in by_w.items():
        out.append(f"q = {block.load(f'pw{w}', path.index)}")
        out += [f"h{b} += q * {sums[products]}_{b}" for b in components]
    return out


def _weighted(parts: Sequence[tuple[int, float]], name: str) -> str:
    return " + ".join(f"{value!r} * {name}{b}" for b, value in parts)
