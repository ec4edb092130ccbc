"""The triton kernels of `small` models compiled for a GPU, which needs none: registers, spilling, compilation time.

    python benchmarks/gpu_kernels.py --capability 90

Needs ``pip install 'pimlip-zoo[gpu]'``. Seconds are CPU time with an empty cache, the assembler included. How fast the
kernels are is for ``backends.py`` to say, on a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from e3nn import o3

CHANNELS = 32
LISTS = {"first": "*i64", "row": "*i32", "slot": "*i32", "centre": "*i32", "species": "*i32", "slices": "i32"}
ONE, TWO = ((0, 0, 0),), ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, default=90, help="90: Hopper, 80: A100")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    options = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        import triton
    except ImportError:
        print("skipped: triton is not installed", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        print(f"triton {triton.__version__}, compute capability {options.capability / 10}, {options.dtype}\n")
        print("| kernel | registers | spilled bytes | compilation s |")
        print("|---|---|---|---|")
        for name, source in kernels(getattr(torch, options.dtype)):
            registers, spilled, seconds = measure(source, options, Path(cache))
            print(f"| {name} | {registers} | {spilled} | {seconds:.1f} |", flush=True)
    return 0


def kernels(dtype: torch.dtype):
    from pimlip_zoo.compiled.kernels import PolynomialForm
    from pimlip_zoo.compiled.kernels.convolution.form import EdgeSum, NodeSum
    from pimlip_zoo.compiled.kernels.convolution.gpu import edge_sum_source, node_sum_source
    from pimlip_zoo.compiled.kernels.launch import Block
    from pimlip_zoo.compiled.kernels.polynomial.gpu import triton_polynomial
    from pimlip_zoo.compiled.kernels.product.cpu import CentreSum, EdgeRows
    from pimlip_zoo.compiled.kernels.product.gpu import triton_edge_product
    from pimlip_zoo.compiled.kernels.swept import Sweep
    from pimlip_zoo.nn.contraction import contraction_spec
    from pimlip_zoo.nn.convolution import Convolution, convolution_spec
    from pimlip_zoo.nn.symmetric_contraction import symmetric_contraction_spec

    block = Block(CHANNELS, dtype)
    harmonics = o3.Irreps.spherical_harmonics(2)
    form = Convolution(convolution_spec(harmonics, harmonics, harmonics)).form
    yield "convolution, 11 paths", node_sum_source(form, NodeSum("out", ONE), block)
    yield "its gradient by features", node_sum_source(form, NodeSum("in", ONE), block)
    yield "its gradients by weights and harmonics", edge_sum_source(form, EdgeSum(ONE, ONE), block)
    yield "its tangent", node_sum_source(form, NodeSum("out", TWO), block)
    irreps = o3.Irreps("0e+0o+1o+1e+2e+2o")
    spec = contraction_spec(irreps, harmonics, irreps)
    entries = tuple(sorted({(a, k) for _, a, _, k, _ in spec.terms}))
    product = triton_edge_product(entries, irreps.dim, irreps.dim, CHANNELS, dtype)
    yield f"edges times environment, {len(entries)} entries", product.source(EdgeRows("out", ((0, 0),)))
    yield "its gradient by the environment", product.source(CentreSum(((0, 0),)))
    features = o3.Irreps.spherical_harmonics(3)
    polynomials = symmetric_contraction_spec(features, o3.Irreps("0e+1o"), 3)
    contraction = triton_polynomial(PolynomialForm(16, 4, polynomials.terms), CHANNELS, dtype)
    yield f"symmetric contraction, {len(polynomials.terms)} terms", contraction.source(Sweep(0))
    yield "its gradient by features", contraction.source(Sweep(1, True))
    yield "its gradient by coefficients", contraction.source(Sweep(1, False, True))


def measure(source, options: argparse.Namespace, folder: Path) -> tuple[int, int, float]:
    from triton import compile as triton_compile
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pimlip_zoo.compiled.kernels.launch import compiled

    number = "*fp32" if options.dtype == "float32" else "*fp64"
    signature = {name: LISTS.get(name, number) for name in source.arguments}
    before = os.times()
    kernel = triton_compile(
        ASTSource(compiled(source.text), signature),
        target=GPUTarget("cuda", options.capability, 32),
        options={"num_warps": 1},
    )
    after = os.times()
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    usage = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    said = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2]), sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    sys.exit(main())
