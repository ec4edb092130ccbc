"""Triton's kernels are e3nn's tensor product and plain torch in every derivative; on a machine without GPU interpreted.

Without a GPU the kernels are also compiled for one, which needs none: what cannot be seen here is how fast they are.
"""

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convolution import IRREPS, assert_close, e3nn_convolution, full, operands, sweeps
from test_polynomial import module_of as polynomial_of
from test_polynomial import operands as polynomial_operands
from test_product import module_of as contraction_of
from test_product import operands as product_operands
from torch import Tensor

from pimlip_zoo.compiled.kernels import available_backends, dispatch, launch, use_kernels
from pimlip_zoo.compiled.kernels.convolution import gpu as convolution
from pimlip_zoo.compiled.kernels.convolution.form import EdgeSum, NodeSum
from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.launch import Block, compiled
from pimlip_zoo.compiled.kernels.polynomial.gpu import triton_polynomial
from pimlip_zoo.compiled.kernels.product.cpu import CentreSum, EdgeRows
from pimlip_zoo.compiled.kernels.product.gpu import triton_edge_product
from pimlip_zoo.compiled.kernels.swept import Sweep
from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.convolution import Convolution, convolution_spec

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: pip install 'pimlip-zoo[gpu]'",
)
needs_no_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None, reason="triton is installed"
)
on_gpu = torch.cuda.is_available()
device = torch.device("cuda" if on_gpu else "cpu")


@contextmanager
def triton_kernels() -> Iterator[None]:
    """On the GPU where there is one, otherwise interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        if not on_gpu:
            patch.setenv("TRITON_INTERPRET", "1")
        with use_kernels("triton"):
            yield


def moved(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]


def ours(module, tensors, index) -> list[Tensor]:
    with triton_kernels():
        return [t.cpu() for t in sweeps(module.to(device), moved(tensors), index.to(device))]


def plain(module, tensors, index) -> list[Tensor]:
    with use_kernels("reference"):
        return sweeps(module.cpu(), tensors, index)


@needs_triton
@settings(max_examples=6, deadline=None)
@given(
    irreps=st.sampled_from(IRREPS),
    l_edge=st.integers(0, 1),
    targets=st.sampled_from(IRREPS),
    nodes=st.integers(1, 4),
    count=st.integers(0, 7),
    channels=st.sampled_from([1, 3, 8, 21]),
    seed=st.integers(0, 99),
)
def test_convolution_equals_e3nn_in_all_derivatives(irreps, l_edge, targets, nodes, count, channels, seed):
    spec = convolution_spec(o3.Irreps(irreps), o3.Irreps.spherical_harmonics(l_edge), o3.Irreps(targets))
    if not spec.paths:
        return
    module = Convolution(spec)
    tensors, index = operands(module, nodes, count, channels, seed=seed)
    expected = sweeps(e3nn_convolution(module, channels), tensors, index)
    assert_close(ours(module, tensors, index), expected, 1e-10)


@needs_triton
@pytest.mark.parametrize(("nodes", "count", "channels"), [(0, 0, 4), (1, 0, 4), (2, 9, 160), (3, 6, 0)])
def test_any_number_of_atoms_edges_and_channels(nodes, count, channels):
    module = full(1)
    tensors, index = operands(module, nodes, count, channels)
    assert_close(ours(module, tensors, index), plain(module, tensors, index), 1e-10)


@needs_triton
def test_convolution_of_degree_two_in_float32_with_edges_in_any_order():
    module = full(2)
    tensors, index = operands(module, 3, 8, 5)
    index = index[:, torch.randperm(8, generator=torch.Generator().manual_seed(5))]
    single = [t.detach().float().requires_grad_() for t in tensors]
    found = ours(module, single, index)
    assert all(t.dtype == torch.float32 for t in found)
    assert_close([t.double() for t in found], plain(module, tensors, index), 2e-6)


@needs_triton
def test_convolution_with_more_results_than_one_program_holds(monkeypatch):
    monkeypatch.setattr(convolution, "_ACCUMULATORS", 5)
    convolution.triton_convolution.cache_clear()
    try:
        module = full(1)
        tensors, index = operands(module, 2, 5, 3)
        assert_close(ours(module, tensors, index), plain(module, tensors, index), 1e-10)
    finally:
        convolution.triton_convolution.cache_clear()


@needs_triton
def test_third_derivatives():
    module = full(1)
    tensors, index = operands(module, 2, 4, 2)

    def third(tensors, index):
        out = (module(*tensors, index) ** 2).sum()
        for _ in range(2):
            out = sum((g**2).sum() for g in torch.autograd.grad(out, tensors, create_graph=True))
        return [t.cpu() for t in torch.autograd.grad(out, tensors)]

    with use_kernels("reference"):
        expected = third(tensors, index)
    with triton_kernels():
        module.to(device)
        assert_close(third(moved(tensors), index.to(device)), expected, 1e-10)


def contraction_sweeps(module, tensors, centre) -> list[Tensor]:
    """Also by the weights, through the contraction of each centre's environment."""
    inputs = [*tensors, module.weights]
    return sweeps(lambda v, a, _, c: module(v, a, c), inputs, centre)


@needs_triton
@settings(max_examples=4, deadline=None)
@given(
    irreps_in=st.sampled_from(["0e", "0e + 1o", "0o + 1e", "1o + 2e"]),
    irreps_out=st.sampled_from(["0e", "0e + 1o", "1e"]),
    nodes=st.integers(1, 3),
    count=st.integers(0, 7),
    channels=st.sampled_from([1, 8, 19]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_edges_times_environment_equal_plain_torch(irreps_in, irreps_out, nodes, count, channels, dtype):
    module = contraction_of(irreps_in, irreps_out, channels, l_max=1)
    if not module.spec.paths:
        return
    tensors, centre = product_operands(module, nodes, count, channels)
    with use_kernels("reference"):
        expected = contraction_sweeps(module, tensors, centre)
    module = module.to(device, dtype)
    single = [t.detach().to(device, dtype).requires_grad_() for t in tensors]
    with triton_kernels():
        found = contraction_sweeps(module, single, centre.to(device))
    assert_close([t.cpu().double() for t in found], expected, 1e-10 if dtype == torch.float64 else 1e-5)


@needs_triton
@settings(max_examples=4, deadline=None)
@given(
    irreps_in=st.sampled_from(["0e", "0e + 1o", "0e + 0o + 1o"]),
    irreps_out=st.sampled_from(["0e", "0e + 1o"]),
    correlation=st.integers(1, 3),
    rows=st.integers(0, 9),
    channels=st.sampled_from([1, 8, 11]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_symmetric_contraction_equals_plain_torch(irreps_in, irreps_out, correlation, rows, channels, dtype):
    module = polynomial_of(irreps_in, irreps_out, correlation, channels)
    x, species = polynomial_operands(module, rows, channels)

    def run(x, species):
        return sweeps(lambda t, _, s: module(t, s), [x, module.weights], species)

    with use_kernels("reference"):
        expected = run(x, species)
    module.to(device, dtype)
    with triton_kernels():
        found = run(x.detach().to(device, dtype).requires_grad_(), species.to(device))
    assert_close([t.cpu().double() for t in found], expected, 1e-11 if dtype == torch.float64 else 2e-5)


@needs_triton
def test_coefficients_gradients_of_many_atoms_are_shared_out():
    module = polynomial_of("0e + 1o", "0e", 2, 2)
    x, species = polynomial_operands(module, 60, 2)
    run = lambda x, s: torch.autograd.grad((module(x, s) ** 2).sum(), module.weights)[0].cpu()  # noqa: E731
    with use_kernels("reference"):
        expected = run(x, species)
    module.to(device)
    with triton_kernels():
        found = run(x.detach().to(device).requires_grad_(), species.to(device))
    assert_close([found], [expected], 1e-12)


def argument_type(name: str, dtype: torch.dtype) -> str:
    lists = {
        "first": "*i64",
        "row": "*i32",
        "slot": "*i32",
        "centre": "*i32",
        "species": "*i32",
        "slices": "i32",
    }
    return lists.get(name, "*fp32" if dtype == torch.float32 else "*fp64")


def compile_for_gpu(source, block):
    """PTX and machine code for compute capability 9.0, which needs no GPU."""
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: argument_type(name, block.dtype) for name in source.arguments}
    options = {"num_warps": max(1, block.size // 32)}
    target = GPUTarget("cuda", 90, 32)
    return triton_compile(ASTSource(compiled(source.text), signature), target=target, options=options).asm


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_kernels_compile_for_a_gpu_and_keep_their_coefficients(dtype, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    form, one, two = full(1).form, ((0, 0, 0),), ((1, 0, 0), (0, 1, 0))
    block = Block(20, dtype)
    convolutions = [
        convolution.node_sum_source(form, NodeSum("out", one), block),
        convolution.node_sum_source(form, NodeSum("in", two), block),
        convolution.edge_sum_source(form, EdgeSum(two, one), block),
    ]
    product = triton_edge_product(((0, 0), (0, 1), (1, 1)), 2, 2, 20, dtype)
    products = [EdgeRows("out", ((0, 0),)), EdgeRows("in", ((0, 1), (1, 0))), CentreSum(((0, 0),))]
    contraction = triton_polynomial(polynomial_of("0e + 1o", "0e", 2, 20).form, 20, dtype)
    sweeps = [Sweep(0), Sweep(2, True, False, True), Sweep(1, False, True)]
    others = [*map(product.source, products), *map(contraction.source, sweeps)]
    assembly = [compile_for_gpu(source, block) for source in (*convolutions, *others)]
    assert all(len(asm["cubin"]) > 0 for asm in assembly)
    if dtype == torch.float64:  # Clebsch-Gordan coefficients with all their digits
        values = {abs(term[4]) for term in form.terms if abs(term[4]) != 1.0}
        hexadecimal = [struct.pack(">d", value).hex().upper() for value in values]
        assert any(h in assembly[0]["ptx"].upper() for h in hexadecimal)


def test_lists_of_edges_that_are_not_sorted():
    index = torch.tensor([[2, 0, 2, 1], [0, 2, 1, 2]])
    first, neighbour, edge = EdgeLists(index, 4).by_centre
    assert first.tolist() == [0, 1, 2, 4, 4]
    assert (neighbour.tolist(), edge.tolist()) == ([2, 2, 0, 1], [1, 3, 0, 2])
    first, centre, edge = EdgeLists(index, 4).by_neighbour
    assert first.tolist() == [0, 1, 2, 4, 4]
    assert (centre.tolist(), edge.tolist()) == ([2, 2, 0, 1], [0, 2, 1, 3])


@needs_triton
@pytest.mark.skipif(on_gpu, reason="there is a GPU")
def test_without_gpu_and_interpreter_triton_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "there is no GPU" in available_backends()["triton"]
    with pytest.raises(InputError, match="there is no GPU"), use_kernels("triton"):
        pass
    # As where there is a GPU, but a tensor is not on it.
    monkeypatch.setattr(dispatch, "chosen_backend", lambda: "triton")
    module = full(1)
    tensors, index = operands(module, 2, 3, 2)
    with pytest.raises(InputError, match="tensor on the CPU"):
        module(*tensors, index)


@needs_no_triton
def test_without_triton_its_name_is_refused():
    with pytest.raises(InputError, match="triton is not available: not installed"), use_kernels("triton"):
        pass


def test_triton_is_chosen_by_name_only():
    tensor = torch.zeros(2, device="meta")  # neither on the CPU nor anything that could be computed with
    assert dispatch.OPERATIONS.get("convolve").backend(tensor) == "reference"


@pytest.mark.gpu
@pytest.mark.skipif(not on_gpu, reason="needs a GPU")
def test_on_a_gpu_triton_works_by_name():
    tensor = torch.zeros(2, device=device)
    assert launch.works_on(tensor.device) is None
    assert dispatch.OPERATIONS.get("convolve").backend(tensor) == "reference"
    with use_kernels("triton"):
        assert dispatch.OPERATIONS.get("convolve").backend(tensor) == "triton"
