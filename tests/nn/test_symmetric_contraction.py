"""Symmetric contraction: equivariant, complete, equal to the products it stands for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.symmetric_contraction import (
    SymmetricContraction,
    coupling_terms,
    symmetric_contraction_spec,
)

CASES = [
    (l_max, out, correlation, basis)
    for l_max, out, correlation in (
        (0, "0e", 3),
        (1, "0e+1o", 4),
        (2, "0e+1o+2e", 3),
        (3, "0e+1o", 3),
        (2, "3o", 2),
    )
    for basis in ("paths", "reduced")
]


def make(
    l_max: int, out: str, correlation: int, basis: str, species: int = 3, channels: int = 4
) -> SymmetricContraction:
    torch.manual_seed(0)
    spec = symmetric_contraction_spec(
        o3.Irreps.spherical_harmonics(l_max), o3.Irreps(out), correlation, basis
    )
    return SymmetricContraction(spec, species, channels).to(torch.float64)


def features(l_max: int, atoms: int = 6, channels: int = 4, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(atoms, (l_max + 1) ** 2, channels, generator=generator, dtype=torch.float64)


def turning(irreps: o3.Irreps, matrix: torch.Tensor) -> torch.Tensor:
    """How components of natural parity turn, from the harmonics of many directions: ``Y(R r) = D Y(r)``.

    e3nn's own ``D_from_matrix`` carries 1e-7 from the angles that it goes through.
    """
    points = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    before = o3.spherical_harmonics(irreps, points, normalize=True, normalization="component")
    after = o3.spherical_harmonics(irreps, points @ matrix.T, normalize=True, normalization="component")
    d = torch.linalg.lstsq(before, after).solution.T
    degree = torch.tensor([ir.l for _, ir in irreps for _ in range(ir.dim)])
    return d * (degree[:, None] == degree[None, :])


@pytest.mark.parametrize(("l_max", "out", "correlation", "basis"), CASES)
def test_rotating_the_features_rotates_the_result(l_max: int, out: str, correlation: int, basis: str) -> None:
    contraction = make(l_max, out, correlation, basis)
    x, species = features(l_max), torch.tensor([0, 1, 2, 0, 1, 2])
    rotation = -torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )[0]
    d_in = turning(contraction.spec.irreps_in, rotation)
    d_out = turning(contraction.irreps_out, rotation)
    rotated = contraction(torch.einsum("ab,nbc->nac", d_in, x), species)
    expected = torch.einsum("ab,nbc->nac", d_out, contraction(x, species))
    torch.testing.assert_close(rotated, expected, rtol=0, atol=1e-11 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("l_max", "out", "correlation", "basis"), CASES)
def test_the_result_is_the_sum_of_the_terms_of_the_specification(
    l_max: int, out: str, correlation: int, basis: str
) -> None:
    contraction = make(l_max, out, correlation, basis)
    spec, species = contraction.spec, torch.tensor([2, 0, 0, 1, 1, 2])
    x = features(l_max)
    expected = torch.zeros(6, spec.irreps_out.dim, 4, dtype=torch.float64)
    for term, row in zip(*spec.table.nonzero(), strict=True):
        value = float(spec.table[term, row])
        component, monomial = spec.terms[term]
        product = torch.stack([x[:, i] for i in monomial]).prod(dim=0)
        expected[:, component] += value * product * contraction.weights[species, row].detach()
    torch.testing.assert_close(contraction(x, species).detach(), expected, rtol=1e-11, atol=1e-12)


def test_second_order_scalars_are_dot_products() -> None:
    contraction = make(2, "0e", 2, "paths", species=1, channels=1)
    x = features(2, channels=1)
    with torch.no_grad():
        contraction.weights.copy_(torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64).view(1, 4, 1))
    degrees = zip((0, 1, 4), (1, 4, 9), strict=True)
    expected = sum((x[:, a:b] ** 2).sum(1) / math.sqrt(b - a) for a, b in degrees)
    result = contraction(x, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(result[:, 0].detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("l_max", "out", "order"), [(2, "0e", 3), (2, "2e", 3), (3, "1o", 3), (2, "1o", 4)])
def test_the_polynomials_span_all_equivariant_ones(l_max: int, out: str, order: int) -> None:
    """Their number is the multiplicity of the irrep in the symmetric power, found from characters."""
    irreps, irrep = o3.Irreps.spherical_harmonics(l_max), o3.Irrep(out)
    angles = (np.arange(4000) + 0.5) * math.pi / 4000
    haar = (1 - np.cos(angles)) / 4000

    def trace(power: int, sign: int) -> np.ndarray:
        """Of D(R^power), R an angle's rotation, times an inversion or not."""
        total = np.zeros_like(angles)
        for _, ir in irreps:
            parity = (ir.p if sign < 0 else 1) ** power
            total += parity * sum(np.cos(m * power * angles) for m in range(-ir.l, ir.l + 1))
        return total

    def symmetric(sign: int) -> np.ndarray:
        """Newton's identities for complete symmetric polynomials."""
        h = [np.ones_like(angles)]
        for n in range(1, order + 1):
            h.append(sum(trace(k, sign) * h[n - k] for k in range(1, n + 1)) / n)
        return h[order]

    character = sum(np.cos(m * angles) for m in range(-irrep.l, irrep.l + 1))
    multiplicity = 0.5 * sum(
        (haar * symmetric(sign) * character * (irrep.p if sign < 0 else 1)).sum() for sign in (1, -1)
    )
    spec = symmetric_contraction_spec(irreps, o3.Irreps([(1, irrep)]), order, "reduced")
    assert spec.blocks[-1].size == round(multiplicity)
    assert abs(multiplicity - round(multiplicity)) < 1e-3


@pytest.mark.parametrize(("l_max", "out", "correlation"), [(3, "0e+1o", 3), (2, "0e+1o+2e", 3), (1, "0e", 4)])
def test_both_bases_give_random_weights_the_same_distribution(l_max: int, out: str, correlation: int) -> None:
    irreps, irreps_out = o3.Irreps.spherical_harmonics(l_max), o3.Irreps(out)
    paths = symmetric_contraction_spec(irreps, irreps_out, correlation, "paths")
    reduced = symmetric_contraction_spec(irreps, irreps_out, correlation, "reduced")
    assert paths.terms == reduced.terms
    assert reduced.num_weights < paths.num_weights
    for a, b in zip(paths.blocks, reduced.blocks, strict=True):
        assert a.paths == b.paths
        of_paths = paths.table[:, a.first : a.first + a.size]
        of_reduced = reduced.table[:, b.first : b.first + b.size]
        assert np.linalg.matrix_rank(of_reduced) == b.size
        np.testing.assert_allclose(of_paths @ of_paths.T, of_reduced @ of_reduced.T, rtol=0, atol=1e-9)


@given(order=st.integers(1, 4), l_max=st.integers(0, 2), degree=st.integers(0, 2), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_terms_of_one_order_transform_like_their_irrep(
    order: int, l_max: int, degree: int, seed: int
) -> None:
    irreps, irrep = o3.Irreps.spherical_harmonics(l_max), o3.Irrep(degree, (-1) ** degree)
    terms, matrix = coupling_terms(irreps, irrep, order)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=irreps.dim)
    rotation = torch.linalg.qr(torch.from_numpy(rng.normal(size=(3, 3))))[0]
    turned = turning(irreps, rotation).numpy() @ x

    def values(point: np.ndarray) -> np.ndarray:
        out = np.zeros((irrep.dim, matrix.shape[1]))
        for (component, monomial), row in zip(terms, matrix, strict=True):
            out[component] += row * np.prod(point[list(monomial)])
        return out

    expected = turning(o3.Irreps([(1, irrep)]), rotation).numpy() @ values(x)
    np.testing.assert_allclose(
        values(turned), expected, rtol=0, atol=1e-11 * (1 + np.abs(expected).max(initial=0))
    )


@pytest.mark.parametrize(("l_max", "out", "correlation", "basis"), CASES[2:6])
def test_first_and_second_derivatives_are_right(l_max: int, out: str, correlation: int, basis: str) -> None:
    contraction = make(l_max, out, correlation, basis, channels=2, species=2)
    x = features(l_max, atoms=3, channels=2).requires_grad_(True)
    species = torch.tensor([1, 0, 1])
    assert torch.autograd.gradcheck(
        lambda x, _: contraction(x, species), (x, contraction.weights), fast_mode=True
    )
    assert torch.autograd.gradgradcheck(
        lambda x, _: contraction(x, species), (x, contraction.weights), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("atoms", [0, 1, 5])
def test_scripted_equals_eager_for_any_number_of_atoms(atoms: int, dtype: torch.dtype) -> None:
    contraction = make(3, "0e+1o", 3, "paths").to(dtype)
    x, species = features(3, atoms=atoms).to(dtype), torch.arange(atoms) % 3
    result = contraction(x, species)
    assert result.shape == (atoms, 4, 4)
    assert result.dtype == dtype
    # Scripted it runs in plain torch, eagerly by compiled kernels: equal up to rounding.
    rounding = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        torch.jit.script(contraction)(x, species), result, rtol=rounding, atol=rounding
    )
    exact = make(3, "0e+1o", 3, "paths")(x.double(), species)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(
        result.double(),
        exact,
        rtol=0,
        atol=tolerance * max(1.0, float(exact.detach().abs().amax()) if atoms else 1.0),
    )


def test_an_irrep_that_cannot_be_reached_is_zero() -> None:
    contraction = make(1, "0e+2e", 1, "paths")
    result = contraction(features(1), torch.zeros(6, dtype=torch.int64))
    assert torch.equal(result[:, 1:], torch.zeros_like(result[:, 1:]))
    assert float(result[:, 0].detach().abs().min()) > 0


def test_atoms_of_a_species_see_only_their_own_weights() -> None:
    contraction = make(2, "0e+1o", 2, "reduced")
    x = features(2)
    result = contraction(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    (gradient,) = torch.autograd.grad(result[:3].sum(), contraction.weights)
    assert float(gradient[0].abs().min()) > 0
    assert torch.equal(gradient[1:], torch.zeros_like(gradient[1:]))


def test_monomials_are_ascending_and_terms_are_sorted() -> None:
    spec = symmetric_contraction_spec(o3.Irreps.spherical_harmonics(3), o3.Irreps("0e+1o"), 3, "paths")
    assert len(spec.terms) == 410
    assert [block.size for block in spec.blocks] == [1, 4, 23, 1, 6, 51]
    keys = [(component, len(monomial), monomial) for component, monomial in spec.terms]
    assert keys == sorted(set(keys))
    assert all(a <= b for _, monomial in spec.terms for a, b in itertools.pairwise(monomial))


@pytest.mark.parametrize(
    ("correlation", "basis", "key"),
    [(0, "paths", "correlation"), (5, "paths", "correlation"), (2, "all", "basis")],
)
def test_what_cannot_be_built_is_refused(correlation: int, basis: str, key: str) -> None:
    with pytest.raises(InputError) as error:
        make(1, "0e", correlation, basis)
    assert error.value.key == key
