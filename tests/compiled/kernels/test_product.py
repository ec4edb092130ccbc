"""The compiled product of edges with their centre equals plain torch in every derivative."""

import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.nn.contraction import EdgeContraction, contraction_spec

pytestmark = pytest.mark.compiler


def module_of(irreps_in: str, irreps_out: str, channels: int, l_max: int = 2) -> EdgeContraction:
    torch.manual_seed(0)
    spec = contraction_spec(o3.Irreps(irreps_in), o3.Irreps.spherical_harmonics(l_max), o3.Irreps(irreps_out))
    return EdgeContraction(spec, channels).double()


def operands(module, nodes, count, channels, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(nodes, (count,), generator=generator).sort().values
    features = torch.randn(count, module.product.dim_in, channels, generator=generator, dtype=torch.float64)
    environment = torch.randn(
        nodes, module.spec.irreps_environment.dim, channels, generator=generator, dtype=torch.float64
    )
    return [features.to(dtype).requires_grad_(), environment.to(dtype).requires_grad_()], centre


def sweeps(module, tensors, centre, backend):
    with use_kernels(backend):
        generator = torch.Generator().manual_seed(1)
        like = lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)  # noqa: E731
        out = module(*tensors, centre)
        g = like(out).requires_grad_()
        inputs = [*tensors, module.weights]
        first = torch.autograd.grad(out, inputs, g, create_graph=True)
        scalar = sum((f * like(f)).sum() for f in first) + (out * like(out)).sum()
        return [out, *first, *torch.autograd.grad(scalar, [*inputs, g])]


def worst(left, right) -> float:
    return max(
        float(((a - b).abs().max() / b.abs().max().clamp(min=1.0)).detach()) if b.numel() else 0.0
        for a, b in zip(left, right, strict=True)
    )


@settings(max_examples=6, deadline=None)
@given(
    irreps_in=st.sampled_from(["0e", "0e + 1o", "0e + 0o + 1o + 1e", "1o + 2e"]),
    irreps_out=st.sampled_from(["0e", "0e + 1o + 2e", "1e"]),
    nodes=st.integers(1, 7),
    count=st.integers(0, 30),
    channels=st.sampled_from([1, 8, 19]),
)
def test_equals_plain_torch_in_all_derivatives(irreps_in, irreps_out, nodes, count, channels):
    module = module_of(irreps_in, irreps_out, channels)
    if not module.product.entries:
        return
    tensors, centre = operands(module, nodes, count, channels)
    assert worst(sweeps(module, tensors, centre, "cpu"), sweeps(module, tensors, centre, "reference")) < 1e-10


def test_float32_and_the_full_set_of_irreps():
    irreps = "0e + 0o + 1o + 1e + 2e + 2o"
    module = module_of(irreps, irreps, 32)
    tensors, centre = operands(module, 5, 40, 32)
    exact = sweeps(module, tensors, centre, "reference")
    assert worst(sweeps(module, tensors, centre, "cpu"), exact) < 1e-10
    single, _ = operands(module, 5, 40, 32, torch.float32)
    ours = sweeps(module.float(), single, centre, "cpu")
    assert worst([t.double() for t in ours], exact) < 1e-5


def test_gradgradcheck_and_third_derivatives():
    module = module_of("0e + 1o", "0e + 1o", 2, l_max=1)
    tensors, centre = operands(module, 2, 5, 2)
    with use_kernels("cpu"):
        assert torch.autograd.gradgradcheck(lambda *t: module(*t, centre), tensors)

    def third(backend):
        with use_kernels(backend):
            out = (module(*tensors, centre) ** 2).sum()
            for _ in range(2):
                out = sum((g**2).sum() for g in torch.autograd.grad(out, tensors, create_graph=True))
            return list(torch.autograd.grad(out, tensors))

    assert worst(third("cpu"), third("reference")) < 1e-10


def test_result_does_not_depend_on_threads():
    module = module_of("0e + 1o + 2e", "0e + 1o + 2e", 16)
    tensors, centre = operands(module, 50, 900, 16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sweeps(module, tensors, centre, "cpu")
        torch.set_num_threads(3)
        three = sweeps(module, tensors, centre, "cpu")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
