"""The contraction of edges with environments against e3nn's tensor product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from e3nn import o3

from pimlip_zoo.nn.contraction import EdgeContraction, EdgeEnvironment, EdgeTensors, contraction_spec

CASES = [
    ("0e + 1o + 2e", "0e + 1o + 2e", "0e + 1o + 2e"),
    ("0e + 0o + 1e + 1o", "0e + 1o", "0e + 0o + 1e + 1o"),
    ("0e + 1o + 2e + 3o", "0e + 1o + 2e + 3o", "0e"),
    ("0e", "0e", "0e"),
]


@contextmanager
def in_float64() -> Iterator[None]:
    """e3nn makes its coefficients in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def inputs(spec: object, channels: int = 3, atoms: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    centre = torch.tensor([0, 0, 0, 2, 3, 3])
    features = torch.randn(6, spec.irreps_in.dim, channels, dtype=torch.float64, generator=generator)
    environment = torch.randn(
        atoms, spec.irreps_environment.dim, channels, dtype=torch.float64, generator=generator
    )
    return features, environment, centre


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("irreps", CASES, ids=str)
def test_it_equals_the_tensor_product_of_e3nn(irreps: tuple[str, str, str], per_channel: bool) -> None:
    spec = contraction_spec(*(o3.Irreps(each) for each in irreps))
    contraction = EdgeContraction(spec, 3, per_channel=per_channel).to(torch.float64)
    features, environment, centre = inputs(spec)
    # e3nn's path by path, each channel alone.
    with in_float64():
        product = o3.TensorProduct(
            spec.irreps_in,
            spec.irreps_environment,
            spec.irreps_out,
            [(i, j, k, "uuu", True) for i, j, k in spec.paths],
            internal_weights=False,
            shared_weights=True,
            irrep_normalization="component",
            path_normalization="none",
        )
    weights = contraction.weights.detach().expand(-1, 3)
    expected = torch.stack(
        [
            product(features[:, :, c], environment[centre][:, :, c], weights[:, c].contiguous())
            for c in range(3)
        ],
        dim=2,
    )
    torch.testing.assert_close(
        contraction(features, environment, centre).detach(), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("irreps", CASES, ids=str)
def test_it_equals_the_sum_of_its_terms(irreps: tuple[str, str, str]) -> None:
    spec = contraction_spec(*(o3.Irreps(each) for each in irreps))
    contraction = EdgeContraction(spec, 3).to(torch.float64)
    features, environment, centre = inputs(spec)
    expected = torch.zeros(6, spec.irreps_out.dim, 3, dtype=torch.float64)
    for path, a, b, k, value in spec.terms:
        weight = contraction.weights.detach()[path]
        expected[:, k] += value * weight * features[:, a] * environment[centre][:, b]
    torch.testing.assert_close(
        contraction(features, environment, centre).detach(), expected, rtol=0, atol=1e-13
    )


def test_its_derivatives_of_first_and_second_order_are_right() -> None:
    spec = contraction_spec(*(o3.Irreps(each) for each in CASES[1]))
    contraction = EdgeContraction(spec, 3).to(torch.float64)
    features, environment, centre = inputs(spec)
    arguments = (features.requires_grad_(True), environment.requires_grad_(True))

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return contraction(x, y, centre)

    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def test_environments_are_sums_over_the_edges_of_each_centre() -> None:
    tensors = EdgeTensors(o3.Irreps("0e + 1o + 2e"))
    harmonics, weights = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 3, 4, dtype=torch.float64)
    centre = torch.tensor([0, 0, 2, 2, 2])
    per_edge = tensors(harmonics, weights)
    assert torch.equal(per_edge[3, 0], harmonics[3, 0] * weights[3, 0])
    assert torch.equal(per_edge[3, 2], harmonics[3, 2] * weights[3, 1])
    assert torch.equal(per_edge[3, 8], harmonics[3, 8] * weights[3, 2])
    environment = EdgeEnvironment(o3.Irreps("0e + 1o + 2e"))
    sums = environment(harmonics, weights, torch.stack([centre, centre.flip(0)]), 4)
    torch.testing.assert_close(sums[2], per_edge[2:].sum(0))
    assert sums[1].abs().max() == 0
    assert sums[3].abs().max() == 0


def test_no_edges_and_no_channels_lost_in_float32() -> None:
    spec = contraction_spec(*(o3.Irreps(each) for each in CASES[0]))
    contraction = EdgeContraction(spec, 5)
    out = contraction(torch.zeros(0, 9, 5), torch.zeros(2, 9, 5), torch.zeros(0, dtype=torch.int64))
    assert out.shape == (0, 9, 5)
    assert out.dtype == torch.float32
    table = contraction.matrices._table.clone()
    contraction.to(torch.float32).to(torch.float64)
    assert torch.equal(contraction.matrices._table, table)
