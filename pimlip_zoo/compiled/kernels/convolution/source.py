"""C source of the sums over edges, written out from the terms of a trilinear form.

Vectors run over channels, whose number is a constant of the source: every address is a base and a constant.
Nothing of the size of (edges, components, channels) is stored: messages live in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from pimlip_zoo.compiled.kernels.convolution.form import EdgeSum, NodeSum, Path, Term, TrilinearForm
from pimlip_zoo.compiled.kernels.generate import Target, channel_segments, kernel_head, prelude

_BLOCK = 16  # edges whose coupling coefficients are computed together


class Coupling:
    """Distinct ``sum_b coefficient_b Y_b`` that a list of paths needs, equal ones up to sign kept once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.rows: dict[tuple[tuple[int, float], ...], int] = {}
        self.of: dict[tuple[int, int, int], tuple[int, bool]] = {}
        for path in paths:
            sums: dict[tuple[int, int], list[tuple[int, float]]] = {}
            for a, b, k, value in path.terms:
                sums.setdefault((a, k), []).append((b, value))
            for (a, k), parts in sums.items():
                parts.sort()
                negative = parts[0][1] < 0
                key = tuple((b, -value if negative else value) for b, value in parts)
                index = self.rows.setdefault(key, len(self.rows))
                self.of[path.index, a, k] = (index, negative)

    def lines(self, variant: int) -> list[str]:
        """C that fills ``m<variant>[row][edge]`` from ``t<variant>[component][edge]``."""
        return [
            f"m{variant}[{index}][j] = "
            + " + ".join(f"(T){value!r} * t{variant}[{b}][j]" for b, value in key)
            + ";"
            for key, index in self.rows.items()
        ]


def node_sum_source(form: TrilinearForm, kernel: NodeSum, channels: int, target: Target) -> str:
    """C of a :class:`NodeSum`.

    ``first`` has each atom's slots, ``row[s]`` the atom that slot s gathers, ``slot[s]`` its edge (null: s). When
    weights are those of pairs, ``slot`` goes on with the pair of each slot.
    """
    inward = kernel.side == "in"
    source, rows_source, rows_result = (
        ("g", form.rows_out, form.rows_in) if inward else ("x", form.rows_in, form.rows_out)
    )
    coupling = Coupling(form.paths)
    y_variants = sorted({term[1] for term in kernel.terms})
    w_variants = sorted({term[2] for term in kernel.terms})
    s_variants = sorted({term[0] for term in kernel.terms})
    segments = {
        width: channel_segments(width * channels, target.lanes) for width in {w for w, _ in form.by_width}
    }
    out = prelude(target, [lanes for each in segments.values() for _, _, lanes in each])
    size_source, size_result = rows_source[-1] * channels, rows_result[-1] * channels
    out += [
        *kernel_head(),
        "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(dynamic, 16)",
        "for (int64_t i = 0; i < rows; i++) {",
        f"T *restrict o = out0 + i * {size_result};",
        f"memset(o, 0, sizeof(T) * {size_result});",
        "const int64_t end = first[i + 1];",
        f"for (int64_t s = first[i]; s < end; s += {_BLOCK}) {{",
        f"const int n = end - s < {_BLOCK} ? (int)(end - s) : {_BLOCK};",
        f"int64_t edge[{_BLOCK}];",
        "for (int j = 0; j < n; j++) edge[j] = slot ? slot[s + j] : s + j;",
    ]
    of_weights = "edge"
    if kernel.paired:
        of_weights = "pair"
        out += [
            f"int64_t pair[{_BLOCK}];",
            "for (int j = 0; j < n; j++) pair[j] = slot[first[rows] + s + j];",
        ]
    for y in y_variants:
        out += [
            f"T t{y}[{form.dim_edge}][{_BLOCK}] __attribute__((aligned(64)));",
            f"T m{y}[{max(1, len(coupling.rows))}][{_BLOCK}] __attribute__((aligned(64)));",
            f"memset(t{y}, 0, sizeof t{y});",
            f"for (int j = 0; j < n; j++) for (int b = 0; b < {form.dim_edge}; b++)",
            f"t{y}[b][j] = y{y}[edge[j] * {form.dim_edge} + b];",
            f"for (int j = 0; j < {_BLOCK}; j++) {{",
            *coupling.lines(y),
            "}",
        ]
    limit = max(4, target.registers // 2)
    for group in (g for _, paths in form.by_width for g in _groups(paths, inward=inward, limit=limit)):
        results = sorted({c for path in group for c in (path.inputs if inward else path.outputs)})
        for start, stop, lanes in segments[form.width(group[0])]:
            vector = f"v{lanes}"
            out.append(f"for (int c = {start}; c < {stop}; c += {lanes}) {{")
            out += [f"{vector} r{k} = *({vector} *)(o + {rows_result[k] * channels} + c);" for k in results]
            out.append("for (int j = 0; j < n; j++) {")
            stride = f"(int64_t){size_source}"
            out += [
                f"const T *restrict p{source}{v} = {source}{v} + {stride} * row[s + j] + c;"
                for v in s_variants
            ]
            out += [
                f"const T *restrict pw{v} = w{v} + {of_weights}[j] * {form.rows_path[-1] * channels} + c;"
                for v in w_variants
            ]
            for path in group:
                out += _path_into_nodes(path, form, kernel, coupling, channels, vector)
            out.append("}")
            out += [f"*({vector} *)(o + {rows_result[k] * channels} + c) = r{k};" for k in results]
            out.append("}")
    out.append("}}}")
    return "\n".join(out) + "\n"


def _groups(paths: Sequence[Path], *, inward: bool, limit: int) -> list[list[Path]]:
    """Paths whose results fit into registers together."""
    ordered = sorted(paths, key=lambda path: path.inputs) if inward else list(paths)
    groups: list[list[Path]] = []
    held: set[int] = set()
    for path in ordered:
        results = set(path.inputs if inward else path.outputs)
        if groups and len(held | results) <= limit:
            groups[-1].append(path)
            held |= results
        else:
            groups.append([path])
            held = results
    return groups


def _path_into_nodes(
    path: Path, form: TrilinearForm, kernel: NodeSum, coupling: Coupling, channels: int, vector: str
) -> list[str]:
    inward = kernel.side == "in"
    source, inputs, rows = ("g", path.outputs, form.rows_out) if inward else ("x", path.inputs, form.rows_in)
    results = path.inputs if inward else path.outputs
    couplings = []  # (component gathered, component of the result, row of m, sign)
    for a, k in dict.fromkeys((term[0], term[2]) for term in path.terms):
        index, negative = coupling.of[path.index, a, k]
        couplings.append((*((k, a) if inward else (a, k)), index, "-" if negative else "+"))
    out = ["{"]
    for v in sorted({term[0] for term in kernel.terms}):
        loads = [f"*(const {vector} *)(p{source}{v} + {rows[c] * channels})" for c in inputs]
        out += [f"const {vector} s{v}_{c} = {load};" for c, load in zip(inputs, loads, strict=True)]
    for v in sorted({term[2] for term in kernel.terms}):
        at = form.rows_path[path.index] * channels
        out.append(f"const {vector} q{v} = *(const {vector} *)(pw{v} + {at});")
    if len(inputs) <= len(results):  # fewer products when the weights multiply what is gathered
        for y in sorted({term[1] for term in kernel.terms}):
            for c in inputs:
                scaled = " + ".join(f"q{w} * s{s}_{c}" for s, v, w in kernel.terms if v == y)
                out.append(f"const {vector} a{y}_{c} = {scaled};")
            out += [f"r{k} {sign}= m{y}[{index}][j] * a{y}_{c};" for c, k, index, sign in couplings]
    else:  # or when they multiply the result
        for w in sorted({term[2] for term in kernel.terms}):
            out += [f"{vector} a{w}_{k} = {_zero(vector)};" for k in results]
            for s, y in ((s, y) for s, y, v in kernel.terms if v == w):
                out += [f"a{w}_{k} {sign}= m{y}[{index}][j] * s{s}_{c};" for c, k, index, sign in couplings]
            out += [f"r{k} += q{w} * a{w}_{k};" for k in results]
    out.append("}")
    return out


def _zero(vector: str) -> str:
    return "0" if vector == "v1" else "{0}"


def edge_sum_source(form: TrilinearForm, kernel: EdgeSum, channels: int, target: Target) -> str:
    """C of an :class:`EdgeSum`: ``row[e]`` is the neighbour, ``slot[e]`` the centre of edge e.

    ``out0`` is the gradient of the weights, ``out1`` that of the harmonics. When weights are those of pairs, these
    are the rows, ``first[p]`` is the first edge of pair p and ``first[rows + p]`` the second, -1 where there is none.
    """
    segments = [
        (segment, paths)
        for width, paths in form.by_width
        for segment in channel_segments(width * channels, target.lanes)
    ]
    size_in, size_out, size_w = (r[-1] * channels for r in (form.rows_in, form.rows_out, form.rows_path))
    both = kernel.weights + kernel.harmonics
    x_variants = sorted({term[0] for term in both})
    g_variants = sorted({term[2] for term in both})
    y_variants = sorted({term[1] for term in kernel.weights})
    wanted = bool(kernel.harmonics)
    out = prelude(target, [lanes for (_, _, lanes), _ in segments])
    out += [
        *kernel_head(),
        "#pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)",
        "for (int64_t p = 0; p < rows; p++) {",
        *(
            [
                "for (int half = 0; half < 2; half++) {",
                "const int64_t e = first[half * rows + p]; if (e < 0) break;",
            ]
            if kernel.paired
            else ["{ const int64_t e = p;"]
        ),
        *[f"const T *restrict bx{v} = x{v} + (int64_t)row[e] * {size_in};" for v in x_variants],
        *[f"const T *restrict bg{v} = g{v} + (int64_t)slot[e] * {size_out};" for v in g_variants],
        *[f"const T *restrict py{v} = y{v} + e * {form.dim_edge};" for v in y_variants],
    ]
    if kernel.weights:
        out.append(f"T *restrict ow = out0 + p * {size_w};")
        missing = set(range(form.num_paths)) - {path.index for path in form.paths}
        out += [
            f"memset(ow + {form.rows_path[p] * channels}, 0, sizeof(T) * {channels});"
            for p in sorted(missing)
        ]
    if wanted:
        out.append(f"T total[{form.dim_edge}] = {{0}};")
    for (start, stop, lanes), paths in segments:
        used = sorted({term[1] for path in paths for term in path.terms})
        vector = f"v{lanes}"
        out.append("{")
        if wanted:
            out += [f"{vector} h{b} = {_zero(vector)};" for b in used]
        out.append(f"for (int c = {start}; c < {stop}; c += {lanes}) {{")
        for v in x_variants:
            out += [
                f"const {vector} x{v}_{a} = *(const {vector} *)(bx{v} + {form.rows_in[a] * channels} + c);"
                for a in sorted({a for path in paths for a in path.inputs})
            ]
        for path in paths:
            out += _path_into_edges(path, form, kernel, channels, vector)
        out.append("}")
        if wanted:
            out += [f"total[{b}] += sum{lanes}(h{b});" for b in used]
        out.append("}")
    if wanted:
        out.append(f"memcpy(out1 + e * {form.dim_edge}, total, sizeof total);")
    out.append("}}}")
    return "\n".join(out) + "\n"


def _path_into_edges(
    path: Path, form: TrilinearForm, kernel: EdgeSum, channels: int, vector: str
) -> list[str]:
    """Per path ``S_b = sum coefficient x_a g_k``; then ``dw = sum Y_b S_b`` and ``dY_b = sum_c w S_b``."""
    out = ["{"]
    for v in sorted({term[2] for term in kernel.weights + kernel.harmonics}):
        out += [
            f"const {vector} g{v}_{k} = *(const {vector} *)(bg{v} + {form.rows_out[k] * channels} + c);"
            for k in path.outputs
        ]
    sums: dict[tuple[tuple[int, int], ...], str] = {}
    for y in sorted({term[1] for term in kernel.weights}):
        sums.setdefault(products_around(kernel.weights, y), f"s{len(sums)}")
    for w in sorted({term[1] for term in kernel.harmonics}):
        sums.setdefault(products_around(kernel.harmonics, w), f"s{len(sums)}")
    pairs = list(dict.fromkeys((t[0], t[2]) for t in path.terms))
    components = sorted({t[1] for t in path.terms})
    for products, name in sums.items():
        out += [
            f"const {vector} {name}q{a}_{k} = "
            + " + ".join(f"x{x}_{a} * g{g}_{k}" for x, g in products)
            + ";"
            for a, k in pairs
        ]
        for b in components:
            parts = " + ".join(f"(T){value!r} * {name}q{a}_{k}" for a, d, k, value in path.terms if d == b)
            out.append(f"const {vector} {name}_{b} = {parts};")
    if kernel.weights:
        parts = " + ".join(
            f"py{y}[{b}] * {sums[products_around(kernel.weights, y)]}_{b}"
            for y in sorted({term[1] for term in kernel.weights})
            for b in components
        )
        place = f"*({vector} *)(ow + {form.rows_path[path.index] * channels} + c)"
        before = f"(half ? {place} : ({vector}){_zero(vector)}) + " if kernel.paired else ""
        out.append(f"{place} = {before}{parts};")
    for w in sorted({term[1] for term in kernel.harmonics}):
        out.append(
            f"{{ const {vector} q = *(const {vector} *)(w{w} + p * {form.rows_path[-1] * channels}"
            f" + {form.rows_path[path.index] * channels} + c);"
        )
        name = sums[products_around(kernel.harmonics, w)]
        out += [f"h{b} += q * {name}_{b};" for b in components]
        out.append("}")
    out.append("}")
    return out


def products_around(terms: Sequence[Term], middle: int) -> tuple[tuple[int, int], ...]:
    """Which (x, g) are multiplied and added for one variant of the operand between them."""
    return tuple(sorted((x, g) for x, m, g in terms if m == middle))
