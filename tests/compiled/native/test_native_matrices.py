"""Products of matrices in native models are those of torch, whatever their sizes and the order of their elements."""

import ctypes
import itertools

import pytest
import torch

from pimlip_zoo.compiled.kernels.build import compile_kernels, target
from pimlip_zoo.compiled.native.matrices import is_product, product_call, product_source
from pimlip_zoo.compiled.native.program import Program, Size, TensorOp, View
from pimlip_zoo.compiled.native.source import model_source

pytestmark = pytest.mark.compiler

EDGES = Size(0, 0, 1)
LEFT = -7.0
"""What lies beside the result, and has to stay."""


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def product(request):
    (function,) = compile_kernels([product_source(target(request.param))])
    i, p = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [i, i, i, i, p, i, i, p, i, i, p, i]
    function.restype = None
    return function, request.param


def stored(rows, columns, dtype, *, transposed):
    values = torch.randn(columns, rows, dtype=torch.float64) if transposed else torch.randn(rows, columns)
    return (values.T if transposed else values).to(dtype)


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 65])
def test_products_are_those_of_torch(product, rows):
    function, dtype = product
    torch.manual_seed(rows)
    for inner, columns, threads in itertools.product((1, 7, 64), (1, 5, 48, 49, 71), (1, 3)):
        for flags in itertools.product((False, True), repeat=2):
            a = stored(rows, inner, dtype, transposed=flags[0])
            b = stored(inner, columns, dtype, transposed=flags[1])
            out = torch.full((rows + 1, columns + 3), LEFT, dtype=dtype)
            function(
                threads,
                rows,
                inner,
                columns,
                a.data_ptr(),
                *a.stride(),
                b.data_ptr(),
                *b.stride(),
                out.data_ptr(),
                out.stride(0),
            )
            exact = a.double() @ b.double()
            tolerance = (1e-14 if dtype == torch.float64 else 1e-6) * inner
            torch.testing.assert_close(out[:rows, :columns].double(), exact, rtol=0, atol=tolerance)
            assert (out[:rows, columns:] == LEFT).all()
            assert (out[rows] == LEFT).all()


def view(buffer, rows, columns, *, dtype=torch.float32, strides=None):
    strides = strides or (columns, Size(1))
    return View(buffer, dtype, (rows, columns), strides, Size(0))


def multiplied(a, b, out):
    return TensorOp("mm", (a, b), {}, out)


def test_only_products_of_the_kernels_precision_and_of_fixed_sizes_are_taken():
    a, b, out = view(1, EDGES, Size(8)), view(2, Size(8), Size(3)), view(3, EDGES, Size(3))
    backwards = view(2, Size(8), Size(3), strides=(Size(1), Size(8)))
    assert is_product(multiplied(a, b, out), torch.float32)
    assert is_product(multiplied(a, backwards, out), torch.float32)
    assert not is_product(multiplied(a, b, out), torch.float64)
    assert not is_product(TensorOp("add", (a, b), {}, out), torch.float32)
    # A sum over the edges, and a result that is transposed.
    over = view(4, Size(8), EDGES, strides=(Size(1), Size(8)))
    assert not is_product(multiplied(over, out, view(5, Size(8), Size(3))), torch.float32)
    turned = view(5, EDGES, Size(3), strides=(Size(1), EDGES))
    assert not is_product(multiplied(a, b, turned), torch.float32)


def test_a_native_model_calls_one_function_for_all_its_products():
    energy = view(4, EDGES, Size(2))
    first = multiplied(view(0, EDGES, Size(8)), view(1, Size(8), Size(3)), view(2, EDGES, Size(3)))
    second = multiplied(first.out, view(3, Size(3), Size(2)), energy)
    program = Program(
        torch.float32,
        [first, second],
        {2: Size(0, 0, 12), 4: Size(0, 0, 8)},
        {1: torch.ones(24), 3: torch.ones(6)},
        {"vectors": view(0, EDGES, Size(8))},
        {"energy": energy},
    )
    source = model_source(program, 32, 16)
    assert source.count("void native_product(") == 1
    assert product_call(second, "native_product", 1 << 16) in source
