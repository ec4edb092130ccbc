"""The compiled perceptron equals plain torch in every derivative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.compiled.kernels import geometry_only, use_kernels
from pimlip_zoo.compiled.kernels.mlp import MLPSweep, cpu_mlp
from pimlip_zoo.nn.mlp import ScalarMLP

pytestmark = pytest.mark.compiler


def sweeps(module, x, g, backend):
    """Output, gradients, and what a loss on output and gradient has as derivatives."""
    with use_kernels(backend):
        y = module(x)
        gradients = torch.autograd.grad(y, [x, *module.parameters()], g, create_graph=True)
        loss = (gradients[0] ** 2).sum() + (y**2).sum()
        return [y, *gradients, *torch.autograd.grad(loss, [x, g, *module.parameters()])]


def operands(sizes, rows, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(3)
    x = scale * torch.randn(rows, sizes[0], generator=generator, dtype=torch.float64)
    g = torch.randn(rows, sizes[-1], generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), g.to(dtype).requires_grad_()


def assert_same(left, right, tolerance):
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert (a - b).detach().abs().max() <= tolerance * max(1.0, b.detach().abs().max())


@settings(max_examples=6, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 3, 8, 17, 40]), min_size=2, max_size=4),
    rows=st.integers(0, 70),
    normalized=st.booleans(),
)
def test_equals_plain_torch_in_all_derivatives(sizes, rows, normalized):
    torch.manual_seed(0)
    module = ScalarMLP(sizes, normalized=normalized).double()
    x, g = operands(sizes, rows)
    assert_same(sweeps(module, x, g, "cpu"), sweeps(module, x, g, "reference"), 1e-11)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 300.0])
def test_activations_hold_far_out_and_near_zero(scale):
    torch.manual_seed(0)
    module = ScalarMLP((4, 16, 16, 2)).double()
    x, g = operands((4, 2), 33, scale=scale)
    assert_same(sweeps(module, x, g, "cpu"), sweeps(module, x, g, "reference"), 1e-11)


def test_float32_is_as_exact_as_float32_is():
    torch.manual_seed(0)
    module = ScalarMLP((8, 64, 96)).double()
    x, g = operands((8, 96), 100)
    exact = sweeps(module, x, g, "reference")
    x, g = operands((8, 96), 100, torch.float32)
    ours = sweeps(module.float(), x, g, "cpu")
    assert_same([t.double() for t in ours], exact, 1e-5)


def test_higher_and_mixed_derivatives():
    torch.manual_seed(0)
    module = ScalarMLP((2, 5, 2)).double()
    x, _ = operands((2, 2), 3)
    with use_kernels("cpu"):
        assert torch.autograd.gradcheck(module, x)
        assert torch.autograd.gradgradcheck(module, x)

    def third(backend):
        with use_kernels(backend):
            out = (module(x) ** 2).sum()
            for _ in range(2):
                inputs = [x, *module.parameters()]
                out = sum((g**2).sum() for g in torch.autograd.grad(out, inputs, create_graph=True))
            return torch.autograd.grad(out, [x, *module.parameters()])

    assert_same(third("cpu"), third("reference"), 1e-9)


def test_threads_change_nothing_but_rounding():
    torch.manual_seed(0)
    module = ScalarMLP((8, 32, 24)).double()
    x, g = operands((8, 24), 500)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sweeps(module, x, g, "cpu")
        torch.set_num_threads(3)
        assert_same(sweeps(module, x, g, "cpu"), one, 1e-13)
    finally:
        torch.set_num_threads(before)


def test_parameters_are_left_out_only_where_that_was_said():
    module = ScalarMLP((4, 8, 2)).double()
    x, g = operands((4, 2), 9)
    with use_kernels("cpu"):
        y = module(x)
        with geometry_only():
            (inner,) = torch.autograd.grad(y, x, g, create_graph=True)
        ours = torch.autograd.grad((inner**2).sum(), [*module.parameters()])
    with use_kernels("reference"):
        (inner,) = torch.autograd.grad(module(x), x, g, create_graph=True)
        assert_same(ours, torch.autograd.grad((inner**2).sum(), [*module.parameters()]), 1e-11)


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 3, 16, 37]), min_size=3, max_size=4),
    rows=st.sampled_from([0, 1, 31, 70]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_what_is_kept_gives_the_gradient_of_the_input(sizes, rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    module = ScalarMLP(sizes).to(dtype)
    op = cpu_mlp(module.form, dtype)
    flat = torch.cat([weight.detach().reshape(-1) for weight in module.weights])
    x = torch.randn(rows, sizes[0], generator=generator, dtype=dtype).requires_grad_()
    g = torch.randn(rows, sizes[-1], generator=generator, dtype=dtype)
    expected = module.reference(x)
    (slope,) = torch.autograd.grad(expected, x, g)
    found, kept, _ = op.run(MLPSweep(0, keeps=True), x.detach(), flat)
    again, _, _ = op.run(MLPSweep(1, True, keeps=True), x.detach(), flat, g, kept=kept)
    limit = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found, expected.detach(), rtol=limit, atol=limit)
    torch.testing.assert_close(again, slope, rtol=limit, atol=limit)
