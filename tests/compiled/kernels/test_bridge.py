"""The bridge from kernels to autograd: any order of derivative, and nothing computed that nobody wants."""

import pytest
import torch

from pimlip_zoo.compiled.kernels import geometry_is_leaf, geometry_only
from pimlip_zoo.compiled.kernels.bridge import Operation, differentiable
from pimlip_zoo.compiled.kernels.scope import leaf_geometry


class Watched(Operation):
    """Notes what it is asked for."""

    def __init__(self):
        self.asked = []
        self.leaf = leaf_geometry()

    def expect(self, wanted):
        self.asked.append(("expect", wanted))


class Product(Watched):
    """``x y``, linear in both."""

    multilinear = True

    def forward(self, x, y):
        return x * y

    def adjoint(self, x, g, wanted):
        self.asked.append(("adjoint", wanted))
        return tuple(g[0] * other if want else None for other, want in zip(reversed(x), wanted, strict=True))

    def second(self, x, g, h, wanted):
        self.asked.append(("second", wanted))
        zero = torch.zeros_like(x[0])
        hx, hy = (zero if each is None else each for each in h)
        found = (g[0] * hy, g[0] * hx, hx * x[1] + x[0] * hy)
        return tuple(each if want else None for each, want in zip(found, wanted, strict=True))


class Power(Watched):
    """``(a x³, x²)``, whose a is a parameter, and which has a kernel for derivatives of that by x alone."""

    parameters = (1,)

    def forward(self, x, a):
        return a * x**3, x**2

    def adjoint(self, x, g, wanted):
        self.asked.append(("adjoint", wanted))
        by = (3 * x[1] * x[0] ** 2 * g[0] + 2 * x[0] * g[1], x[0] ** 3 * g[0])
        return tuple(each if want else None for each, want in zip(by, wanted, strict=True))

    def second(self, x, g, h, wanted):
        self.asked.append(("second", wanted))
        if h[1] is not None:
            return None
        (x, a), (g0, g1), h0 = x, g, h[0]
        found = ((6 * a * x * g0 + 2 * g1) * h0, 3 * x**2 * g0 * h0, 3 * a * x**2 * h0, 2 * x * h0)
        return tuple(each if want else None for each, want in zip(found, wanted, strict=True))

    def reference(self, x, a):
        return a * x**3, x**2


def operands(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, generator=generator, dtype=dtype).add(0.5).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("operation", [Product, Power])
def test_first_second_and_third_derivatives_are_those_of_finite_differences(operation):
    run = lambda *x: differentiable(operation(), *x)  # noqa: E731
    x = operands()
    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)

    def gradient(*x):
        out = run(*x)
        outs = out if isinstance(out, tuple) else (out,)
        return torch.autograd.grad(outs, x, [torch.cos(each) for each in outs], create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, x)


@pytest.mark.parametrize("operation", [Product, Power])
def test_what_nobody_asks_for_is_not_computed(operation):
    x, y = operands()
    made = operation()
    out = differentiable(made, x, y.detach())
    outs = out if isinstance(out, tuple) else (out,)
    sum(each.sum() for each in outs).backward()
    assert made.asked == [("expect", (True, False)), ("adjoint", (True, False))]


def test_a_parameters_gradient_is_left_out_where_geometry_alone_counts():
    x, a = operands()
    made = Power()
    out = differentiable(made, x, a)
    with geometry_only():
        (force,) = torch.autograd.grad(out, x, [torch.ones_like(x)] * 2, create_graph=True)
    force.square().sum().backward()
    assert [asked for asked in made.asked if asked[0] != "expect"] == [
        ("adjoint", (True, False)),
        ("second", (True, True, False, False)),
    ]
    assert a.grad is not None
    assert x.grad is not None


def test_geometry_that_only_forces_come_from_gets_no_gradient_of_the_loss():
    x, a = operands()
    with geometry_is_leaf(True):
        made = Power()
    out = differentiable(made, x, a)
    with geometry_only():
        (force,) = torch.autograd.grad(out, x, [torch.ones_like(x)] * 2, create_graph=True)
    (force.square().sum() + out[0].sum()).backward()
    assert x.grad is None
    assert torch.allclose(a.grad, x**3 + 2 * force * 3 * x**2)
    assert ("second", (False, True, False, False)) in made.asked


def test_a_derivative_that_has_no_kernel_is_that_of_the_reference():
    x, a = operands()
    made = Power()
    (by_a,) = torch.autograd.grad(differentiable(made, x, a)[0].sum(), a, create_graph=True)
    (mixed,) = torch.autograd.grad(by_a.sum(), x)
    assert torch.allclose(mixed, 3 * x**2, rtol=1e-14)


def test_an_empty_and_a_single_precision_operand_keep_shape_and_dtype():
    for like in (torch.zeros(0, dtype=torch.float64), torch.ones(5, dtype=torch.float32)):
        x, y = like.clone().requires_grad_(), like.clone().requires_grad_()
        (by_x,) = torch.autograd.grad(differentiable(Product(), x, y).sum(), x, create_graph=True)
        (by_y,) = torch.autograd.grad(by_x.sum(), y)
        assert by_y.shape == y.shape
        assert by_y.dtype == y.dtype
