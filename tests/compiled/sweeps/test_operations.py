"""One description of an operation serves the sweeps and autograd: its derivatives are right for both."""

import pytest
import torch
from e3nn import o3

from pimlip_zoo.compiled import kernels
from pimlip_zoo.compiled.kernels.bridge import differentiable
from pimlip_zoo.compiled.kernels.dispatch import OPERATIONS
from pimlip_zoo.compiled.kernels.gate import GateOperation, cpu_gate
from pimlip_zoo.compiled.kernels.linear import LinearOperation, cpu_linear, row_tiles
from pimlip_zoo.nn.gate import Gate
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear, linear_form

pytestmark = pytest.mark.compiler


def random(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.fixture(params=[1, 3, 37])
def rows(request):
    return request.param


def gate(dtype):
    module = Gate(o3.Irreps("2x0e + 1o + 2e"), "0e").to(dtype)
    return module, GateOperation(cpu_gate(module.form, 3, dtype)), module.irreps_in.dim


def test_the_gate_s_derivatives_are_those_of_torch(rows):
    module, operation, dim = gate(torch.float64)
    x = random(rows, dim, 3)
    torch.testing.assert_close(differentiable(operation, x), module(x), rtol=1e-12, atol=1e-12)
    if rows < 10:
        assert torch.autograd.gradcheck(lambda x: differentiable(operation, x), x)
        assert torch.autograd.gradgradcheck(lambda x: differentiable(operation, x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gate_s_last_sweep_is_the_sum_of_both_cotangents_parts(rows, dtype):
    _, operation, dim = gate(dtype)
    x, t = random(rows, dim, 3, dtype=dtype).detach(), torch.ones(rows, dim, 3, dtype=dtype)
    g = torch.ones_like(operation.forward(x))
    both, tangent = operation.second((x,), (g,), (t,), (True, True), more=2 * g)
    along, _ = operation.second((x,), (g,), (t,), (True, False))
    (plain,) = operation.adjoint((x,), (2 * g,), (True,))
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(both, along + plain, rtol=exact, atol=exact)
    (alone,) = operation.second((x,), (None,), (t,), (False, True))[1:]
    assert torch.equal(alone, tangent)


@pytest.mark.parametrize("species", [None, (0, 1, 1, 0, 1)])
def test_a_linear_map_s_derivatives_are_those_of_torch(species):
    irreps = o3.Irreps("0e + 1o")
    if species is None:
        module, count, tiles = EquivariantLinear(irreps, irreps, 4, 2), 1, row_tiles(5)
    else:
        module, count = SpeciesLinear(irreps, irreps, 4, 2, 2), 2
        tiles = row_tiles(5, torch.tensor(species))
    form = linear_form(module.double(), count)
    operation = LinearOperation(cpu_linear(form, torch.float64), tiles)
    x, weights = random(5, 4, 4), random(count, form.offsets[-1])

    def mapped(x, weights):
        return differentiable(operation, x, weights)

    assert torch.autograd.gradcheck(mapped, (x, weights))
    assert torch.autograd.gradgradcheck(mapped, (x, weights))


def test_every_operation_of_the_table_is_a_function_that_modules_call():
    for name, backends in OPERATIONS.all().items():
        assert callable(getattr(kernels, name))
        assert callable(backends.cpu)
