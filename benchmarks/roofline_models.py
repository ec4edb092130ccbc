"""How near the machine's limits a native model as a whole runs.

    python benchmarks/roofline_models.py [--models nequip allegro mace] [--table 1e-4] [--out docs/concepts/compiled.md]

Adds up the arithmetic of every operation of a native model, and the bytes of the arrays that it reads and writes, each
once: gathered rows and tables stay in cache. The time at the ceiling is the sum of the times that the slower ceiling
of one thread (a matrix product's flop/s, a copy's bytes/s) allows each operation. Process CPU time, medians, float32,
``small`` models as in ``speed.py``, a jittered lattice of 1,000 atoms with 55 neighbours each.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from pages import write_between
from roofline import ceilings, median
from speed import CUTOFF, SPECIES, build

KINDS = (
    "perceptrons, linear maps",
    "tables",
    "sums over neighbours",
    "products of edges",
    "moving and adding arrays",
    "rest",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["nequip", "allegro", "mace"])
    parser.add_argument("--table", type=float, default=1e-4, help="error of tables, eV and eV/Å")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="file whose marked part is replaced by the table")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    flops, bandwidth = ceilings(15)
    lines = [
        f"Ceilings of one thread in this run: {flops / 1e9:.0f} Gflop/s, {bandwidth / 1e9:.1f} GB/s. Times in ms:",
        "",
        "| model | Mflop | MB | " + " | ".join(KINDS) + " | at the ceiling ms | measured ms | of the limit |",
        "|---" * (len(KINDS) + 6) + "|",
    ]
    print("\n".join(lines), flush=True)
    for name in options.models:
        for table in (None, options.table):
            lines.append(row(name, table, flops, bandwidth, options.repeats))
            print(lines[-1], flush=True)
    if options.out is not None:
        write_between(options.out, "roofline of models", lines)
    return 0


def row(name: str, table: float | None, flops: float, bandwidth: float, repeats: int) -> str:
    """One line of the table."""
    from pimlip_zoo.deploy.native.evaluation import recorded, steps_of
    from pimlip_zoo.deploy.native.export import export_native
    from pimlip_zoo.deploy.native.library import NativeModel
    from pimlip_zoo.deploy.native.tabulate import tabulated

    potential = build(argparse.Namespace(model=name, size="small", dtype="float32")).eval()
    potential.requires_grad_(False)
    program = recorded(potential, steps_of(potential) if table is None else tabulated(potential, table).trace)
    with tempfile.TemporaryDirectory() as folder:
        export_native(potential, Path(folder) / "model.pimlip", table=table)
        model = NativeModel(Path(folder) / "model.pimlip", threads=1)
    positions, species, cell, pairs = lattice()
    sizes = (len(positions), pairs[0].shape[1], pairs[0].shape[1] // 2)
    milliseconds = median(lambda: model.structure(positions, species, cell, pairs), repeats)
    limits, work, traffic = defaultdict(float), 0.0, 0.0
    for operation in program.operations:
        kind, mine, moved = cost(operation, sizes)
        limits[kind] += 1e3 * max(mine / flops, moved / bandwidth)
        work, traffic = work + mine, traffic + moved
    total = sum(limits.values())
    label = name if table is None else f"{name}, tables"
    cells = " | ".join(f"{limits[kind]:.1f}" for kind in KINDS)
    return (
        f"| {label} | {work / 1e6:,.0f} | {traffic / 1e6:,.0f} | {cells} | {total:.1f} | {milliseconds:.1f} "
        f"| {100 * total / milliseconds:.0f} % |"
    )


def lattice():
    """Positions, species, cell, and pairs closer than the cutoff with their shifts."""
    from pimlip_zoo.datasets.neighbours import neighbour_list

    random, count, spacing = np.random.default_rng(0), 10, 2.12
    grid = np.stack(np.meshgrid(*[np.arange(count)] * 3, indexing="ij"), -1).reshape(-1, 3)
    positions = spacing * (grid + random.uniform(-0.12, 0.12, grid.shape))
    cell = np.eye(3) * spacing * count
    pairs = neighbour_list(positions, cell, np.full(3, True), CUTOFF)
    return positions, random.integers(len(SPECIES), size=len(positions)), cell, pairs


def cost(operation, sizes: tuple[int, int, int]) -> tuple[str, float, float]:
    """Its kind, floating-point operations and bytes; ``sizes`` are the numbers of atoms, edges and pairs."""
    from pimlip_zoo.compiled.native.program import KernelOp, ListsOp, Program

    number = lambda size: size.constant + sum(f * n for f, n in zip(size[1:], sizes, strict=True))  # noqa: E731
    elements = lambda view: math.prod(number(size) for size in view.sizes)  # noqa: E731
    # Lists have no sizes of their own: four bytes an edge.
    moved = sum(
        elements(v) * v.dtype.itemsize if v.sizes else 4.0 * sizes[1] for v in Program.views(operation)
    )
    if isinstance(operation, ListsOp):
        return "rest", 0.0, moved
    if not isinstance(operation, KernelOp):
        return "moving and adding arrays", float(elements(operation.out)), moved
    # Rows that are put into tiles are those of the result.
    rows = number(operation.views[11].sizes[0] if isinstance(operation.rows, int) else operation.rows)
    owner = operation.library
    kind, work = WORK.get(type(owner).__name__, ("rest", lambda *_: 0.0))
    if kind == "tables":  # a table is not read as a whole
        moved -= elements(operation.views[7]) * operation.views[7].dtype.itemsize
    return kind, work(owner, operation.kernel, rows, sizes[1]), moved


def perceptron(owner, kernel, rows: int, _: int) -> float:
    products = [a * b for a, b in itertools.pairwise(owner.form.sizes)]
    again = 0 if kernel.kind == 0 or kernel.keeps else sum(products[:-1])
    return 2.0 * rows * (sum(products) + again)


def linear_map(owner, _, rows: int, __: int) -> float:
    return 2.0 * rows * sum(math.prod(owner.form.shape(block)) * block.dim for block in owner.form.blocks)


def table_rows(owner, kernel, rows: int, _: int) -> float:
    return (12.0 if kernel == 0 else 14.0) * rows * owner.form.width


def edge_product(owner, _, __: int, edges: int) -> float:
    return 2.0 * edges * owner.channels * len(owner.entries)


def polynomial(owner, kernel, rows: int, _: int) -> float:
    monomials = len({monomial for _, monomial in owner.form.terms})
    return rows * owner.channels * (2.0 * len(owner.form.terms) + monomials) * (1 if kernel.kind == 0 else 3)


def neighbour_sum(owner, kernel, _: int, edges: int) -> float:
    return float(edges * owner.channels * sum_over_edges(owner.form, kernel))


def sum_over_edges(form, kernel) -> int:
    """Floating-point operations of one edge and channel."""
    from pimlip_zoo.compiled.kernels.convolution.form import NodeSum

    total = 0
    for path in form.paths:
        pairs = len({(a, k) for a, _, k, _ in path.terms})
        if isinstance(kernel, NodeSum):
            total += 2 * (pairs + min(len(path.inputs), len(path.outputs)))
        else:
            wanted = bool(kernel.weights) + bool(kernel.harmonics)
            total += pairs + 2 * len(path.terms) + 2 * wanted * len({b for _, b, _, _ in path.terms})
    return total


WORK = {
    "CpuMLP": (KINDS[0], perceptron),
    "CpuLinear": (KINDS[0], linear_map),
    "CpuTable": ("tables", table_rows),
    "CpuConvolution": ("sums over neighbours", neighbour_sum),
    "CpuEdgeProduct": ("products of edges", edge_product),
    "CpuPolynomial": ("rest", polynomial),
}
"""Kinds and floating-point operations of kernels by whose they are; of gates and harmonics none are counted."""


if __name__ == "__main__":
    sys.exit(main())
