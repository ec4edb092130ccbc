"""How near the machine's limits each compiled operation runs.

    python benchmarks/roofline.py [--edges 14316] [--atoms 864] [--channels 32]

Measures the ceilings of one thread (a matrix product's flop/s, a copy's bytes/s), then each operation: its arithmetic
and the bytes that it cannot avoid to read and write, the time that the slower of the two ceilings allows, and the time
that it takes. Gathered features count once per atom: they stay in cache. Process CPU time, medians, float32.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edges", type=int, default=14316)
    parser.add_argument("--atoms", type=int, default=864)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    import torch

    from pimlip_zoo.compiled.kernels import available_backends

    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"cpu kernels: {available_backends()['cpu']}")
    flops, bandwidth = ceilings(options.repeats)
    print(f"ceilings of one thread: {flops / 1e9:.0f} Gflop/s, {bandwidth / 1e9:.1f} GB/s\n")
    print("| operation | Mflop | MB | limit ms | forward ms | of the limit | + backward ms |")
    print("|---|---|---|---|---|---|---|")
    for name, function, inputs, work, traffic in operations(options):
        limit = 1e3 * max(work / flops, traffic / bandwidth)
        with torch.no_grad():
            forward = median(lambda f=function, i=inputs: f(*i), options.repeats)
        both = median(lambda f=function, i=inputs: _backward(f, i), options.repeats)
        print(
            f"| {name} | {work / 1e6:.1f} | {traffic / 1e6:.1f} | {limit:.2f} | {forward:.2f} "
            f"| {100 * limit / forward:.0f} % | {both:.2f} |",
            flush=True,
        )
    return 0


def ceilings(repeats: int) -> tuple[float, float]:
    """flop/s of a matrix product in cache, bytes/s of a copy that is not."""
    import torch

    a, b = torch.randn(512, 512), torch.randn(512, 512)
    product = median(lambda: a @ b, repeats)
    source = torch.randn(1 << 24)
    target = torch.empty_like(source)
    copy = median(lambda: target.copy_(source), repeats)
    return 2 * 512**3 / product * 1e3, 2 * source.numel() * 4 / copy * 1e3


def median(function, repeats: int) -> float:
    """Process CPU time in ms."""
    for _ in range(2):
        function()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        function()
        times.append(1e3 * (time.process_time() - begun))
    return statistics.median(times)


def _backward(function, inputs) -> None:
    import torch

    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [t for t in inputs if t.requires_grad]
    torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])


def operations(options: argparse.Namespace):
    """(name, function, inputs, flops, bytes) of every compiled operation."""
    import torch
    from e3nn import o3

    from pimlip_zoo.nn.contraction import EdgeContraction, contraction_spec
    from pimlip_zoo.nn.convolution import Convolution, convolution_spec
    from pimlip_zoo.nn.mlp import ScalarMLP
    from pimlip_zoo.nn.symmetric_contraction import SymmetricContraction, symmetric_contraction_spec

    edges, atoms, channels = options.edges, options.atoms, options.channels
    index = torch.randint(atoms, (2, edges))
    index[0] = index[0].sort().values
    full = o3.Irreps.spherical_harmonics(2)

    def numbers(*shape: int):
        return torch.randn(*shape, requires_grad=True)

    for name, irreps_in, targets in (
        ("convolution, 3 paths from 0e", o3.Irreps("0e"), full),
        ("convolution, 3 paths to 0e", full, o3.Irreps("0e")),
        ("convolution, 11 paths", full, full),
    ):
        module = Convolution(convolution_spec(irreps_in, full, targets))
        form = module.form
        inputs = [
            numbers(atoms, form.dim_in, channels),
            numbers(edges, 9),
            numbers(edges, form.num_paths, channels),
        ]
        products = sum(
            len({(a, k) for a, _, k, _ in p.terms}) + min(len(p.inputs), len(p.outputs)) for p in form.paths
        )
        traffic = 4 * (sum(t.numel() for t in inputs) + atoms * form.dim_out * channels)
        yield (
            name,
            lambda x, y, w, m=module: m(x, y, w, index),
            inputs,
            2 * edges * channels * products,
            traffic,
        )
    irreps = o3.Irreps("0e + 0o + 1o + 1e + 2e + 2o")
    product = EdgeContraction(contraction_spec(full, full, irreps), channels)
    inputs = [numbers(edges, 9, channels), numbers(atoms, 9, channels)]
    traffic = 4 * (inputs[0].numel() + inputs[1].numel() + edges * product.product.dim_out * channels)
    work = 2 * channels * (edges * len(product.product.entries) + atoms * len(product.spec.terms))
    yield "edges times environment", lambda v, a: product(v, a, index[0]), inputs, work, traffic
    for sizes in ((8, 64, 96), (64, 64, 160), (8, 64, 64, 64, 128)):
        perceptron = ScalarMLP(sizes)
        work = 2 * edges * sum(a * b for a, b in itertools.pairwise(sizes))
        traffic = 4 * edges * (sizes[0] + sizes[-1])
        yield f"perceptron {'-'.join(map(str, sizes))}", perceptron, [numbers(edges, sizes[0])], work, traffic
    spec = symmetric_contraction_spec(o3.Irreps("0e + 1o + 2e + 3o"), o3.Irreps("0e + 1o"), 3)
    contraction = SymmetricContraction(spec, 4, channels)
    species = torch.randint(4, (atoms,))
    work = atoms * channels * (2 * len(spec.terms) + len({m for _, m in spec.terms}))
    traffic = 4 * channels * (atoms * (spec.irreps_in.dim + spec.irreps_out.dim) + 4 * len(spec.terms))
    inputs = [numbers(atoms, spec.irreps_in.dim, channels)]
    yield "symmetric contraction, 410 terms", lambda x: contraction(x, species), inputs, work, traffic


if __name__ == "__main__":
    sys.exit(main())
