"""The compiled symmetric contraction equals plain torch in every derivative."""

import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.compiled.kernels.program import Program
from pimlip_zoo.nn.symmetric_contraction import SymmetricContraction, symmetric_contraction_spec

needs_compiler = pytest.mark.compiler


def module_of(irreps_in, irreps_out, correlation, channels):
    torch.manual_seed(0)
    spec = symmetric_contraction_spec(o3.Irreps(irreps_in), o3.Irreps(irreps_out), correlation)
    return SymmetricContraction(spec, 3, channels).double()


def operands(module, rows, channels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, module.spec.irreps_in.dim, channels, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), torch.randint(3, (rows,), generator=generator)


def sweeps(module, x, species, backend):
    """Result, gradients, and what a loss on the result and on the gradient has as derivatives."""
    with use_kernels(backend):
        generator = torch.Generator().manual_seed(4)
        y = module(x, species)
        g = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y).requires_grad_()
        first = torch.autograd.grad(y, [x, module.weights], g, create_graph=True)
        loss = (first[0] ** 2).sum() + (y**2).sum()
        return [y, *first, *torch.autograd.grad(loss, [x, g, module.weights])]


def assert_same(left, right, tolerance):
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert (a - b).detach().abs().max() <= tolerance * max(1.0, float(b.detach().abs().max()))


@needs_compiler
@settings(max_examples=5, deadline=None)
@given(
    irreps_in=st.sampled_from(["0e", "0e + 1o", "0e + 0o + 1o", "0e + 1o + 2e"]),
    irreps_out=st.sampled_from(["0e", "0e + 1o"]),
    correlation=st.integers(1, 3),
    rows=st.integers(0, 12),
    channels=st.sampled_from([1, 8, 11]),
)
def test_equals_plain_torch_in_all_derivatives(irreps_in, irreps_out, correlation, rows, channels):
    module = module_of(irreps_in, irreps_out, correlation, channels)
    x, species = operands(module, rows, channels)
    assert_same(sweeps(module, x, species, "cpu"), sweeps(module, x, species, "reference"), 1e-11)


@needs_compiler
def test_float32_is_as_exact_as_float32_is():
    module = module_of("0e + 1o", "0e + 1o", 3, 16)
    x, species = operands(module, 20, 16)
    exact = sweeps(module, x, species, "reference")
    single, _ = operands(module, 20, 16, torch.float32)
    ours = sweeps(module.float(), single, species, "cpu")
    assert_same([t.double() for t in ours], exact, 2e-5)


@needs_compiler
def test_higher_and_mixed_derivatives():
    module = module_of("0e + 1o", "0e", 2, 2)
    x, species = operands(module, 3, 2)
    with use_kernels("cpu"):
        assert torch.autograd.gradgradcheck(lambda t: module(t, species), x)

    def third(backend):
        with use_kernels(backend):
            out = (module(x, species) ** 2).sum()
            for _ in range(2):
                inputs = [x, module.weights]
                out = sum((g**2).sum() for g in torch.autograd.grad(out, inputs, create_graph=True))
            return torch.autograd.grad(out, [x, module.weights])

    assert_same(third("cpu"), third("reference"), 1e-9)


@needs_compiler
def test_result_does_not_depend_on_threads():
    module = module_of("0e + 1o", "0e + 1o", 3, 32)
    x, species = operands(module, 200, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sweeps(module, x, species, "cpu")
        torch.set_num_threads(3)
        three = sweeps(module, x, species, "cpu")
    finally:
        torch.set_num_threads(before)
    assert_same(three, one, 1e-13)


def evaluate(program, value, numbers):
    lines = program.emit(
        "f", {name: "numbers['" + name + "'][{}]" for name in numbers}, [(value, "result = {}")]
    )
    scope = {"numbers": numbers}
    exec("\n".join(line.replace("const f ", "").rstrip(";") for line in lines), scope)
    return scope["result"]


@settings(deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_programs_differentiate_themselves(values):
    program = Program()
    x, h = [program.input("x", i) for i in range(3)], [program.input("h", i) for i in range(3)]
    a, b, c = x
    # f = a² b + b c
    f = program.add(program.multiply(program.multiply(a, a), b), program.multiply(b, c))
    numbers = {"x": values[:3], "h": values[3:]}
    (va, vb, vc), (ha, hb, hc) = values[:3], values[3:]
    gradient = [evaluate(program, g, numbers) for g in program.gradients(f, x)]
    assert gradient == pytest.approx([2 * va * vb, va * va + vc, vb])
    (tangent,) = program.tangents([f], dict(zip(x, h, strict=True)))
    assert evaluate(program, tangent, numbers) == pytest.approx(
        2 * va * vb * ha + (va * va + vc) * hb + vb * hc
    )
    second = [evaluate(program, g, numbers) for g in program.gradients(tangent, x)]
    assert second == pytest.approx([2 * vb * ha + 2 * va * hb, 2 * va * ha + hc, hb])
