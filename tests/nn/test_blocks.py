"""Every block is the e3nn module that it stands for, in another layout."""

from contextlib import contextmanager

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.errors import InputError
from pimlip_zoo.nn.convolution import Convolution, convolution_spec
from pimlip_zoo.nn.edges import pair_cutoffs
from pimlip_zoo.nn.gate import Gate
from pimlip_zoo.nn.linear import EquivariantLinear, SpeciesLinear, irrep_slices
from pimlip_zoo.nn.radial import BesselBasis, PolynomialCutoff
from pimlip_zoo.nn.spherical import SphericalHarmonics

F64 = torch.float64


def to_e3nn(x, irreps, channels):
    """(rows, K, C) -> e3nn's layout of ``n*C x irrep``, copies before channels."""
    parts = []
    for irrep, start, copies in irrep_slices(irreps):
        block = x[:, start : start + irrep.dim * copies].reshape(len(x), irrep.dim, copies * channels)
        parts.append(block.transpose(1, 2).reshape(len(x), -1))
    return torch.cat(parts, dim=1)


@contextmanager
def float64_by_default():
    """e3nn makes its constants in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def widen(irreps, channels):
    return o3.Irreps([(copies * channels, irrep) for copies, irrep in irreps])


@pytest.mark.parametrize("l_max", [0, 1, 2, 3, 4, 6])
def test_harmonics_are_those_of_e3nn(l_max):
    vectors = torch.randn(20, 3, dtype=F64)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    expected = o3.spherical_harmonics(
        list(range(l_max + 1)), vectors, normalize=True, normalization="component"
    )
    torch.testing.assert_close(SphericalHarmonics(l_max)(unit), expected, rtol=0, atol=1e-12)


def test_harmonics_have_second_derivatives():
    harmonics = SphericalHarmonics(3)
    vectors = torch.randn(3, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda v: harmonics(v / v.norm(dim=1, keepdim=True)), (vectors,), fast_mode=True
    )


def test_radial_functions_and_cutoff_have_second_derivatives_and_end_smoothly():
    x = torch.linspace(0.1, 1.3, 9, dtype=F64, requires_grad=True)
    basis, cutoff = BesselBasis(4, trainable=False), PolynomialCutoff(6)
    assert torch.autograd.gradgradcheck(lambda x: basis(x) * cutoff(x).unsqueeze(-1), (x,), fast_mode=True)
    ends = torch.tensor([0.0, 1.0, 1.0 + 1e-12, 2.0], dtype=F64, requires_grad=True)
    values = cutoff(ends)
    torch.testing.assert_close(values, torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=F64), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(values.sum(), ends)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=F64), rtol=0, atol=1e-9)


def test_bessel_functions_are_sines_over_the_distance():
    x = torch.linspace(0.05, 1.0, 7, dtype=F64)
    n = torch.arange(1, 6, dtype=F64)
    expected = 3.0 * torch.sin(torch.pi * n * x[:, None]) / x[:, None]
    torch.testing.assert_close(BesselBasis(5, prefactor=3.0)(x), expected, rtol=1e-13, atol=1e-13)


irreps_strategy = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(["0e", "0o", "1o", "1e", "2e"])),
    min_size=1,
    max_size=4,
    unique_by=lambda item: item[1],
).map(lambda items: o3.Irreps([(n, o3.Irrep(name)) for n, name in items]))


@given(irreps_in=irreps_strategy, irreps_out=irreps_strategy, c_in=st.integers(1, 4), c_out=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_linear_is_that_of_e3nn_on_any_irreps(irreps_in, irreps_out, c_in, c_out):
    ours = EquivariantLinear(irreps_in, irreps_out, c_in, c_out).double()
    wide_in, wide_out = widen(irreps_in, c_in), widen(irreps_out, c_out)
    theirs = o3.Linear(wide_in, wide_out, internal_weights=False, shared_weights=True)
    weights = {irrep: w for (irrep, *_), w in zip(_shared(irreps_in, irreps_out), ours.weights, strict=True)}
    flat = [weights[wide_in[ins.i_in].ir].reshape(-1) for ins in theirs.instructions if ins.i_in >= 0]
    x = torch.randn(3, irreps_in.dim, c_in, dtype=F64)
    expected = theirs.double()(
        to_e3nn(x, irreps_in, c_in), torch.cat(flat) if flat else torch.zeros(0, dtype=F64)
    )
    torch.testing.assert_close(to_e3nn(ours(x), irreps_out, c_out), expected, rtol=0, atol=1e-12)


def _shared(irreps_in, irreps_out):
    known = {irrep for _, irrep in irreps_in}
    return [(irrep, n) for n, irrep in irreps_out if irrep in known]


def test_species_linear_is_the_linear_map_of_each_species():
    irreps = o3.Irreps("2x0e + 1o")
    layer = SpeciesLinear(irreps, o3.Irreps("0e + 1o + 1e"), 3, 2, embedding_size=4).double()
    embedding = torch.randn(2, 4, dtype=F64)
    x, species = torch.randn(5, 5, 3, dtype=F64), torch.tensor([0, 1, 1, 0, 1])
    y = layer(x, embedding, species)
    for row in range(5):
        vector = embedding[species[row]]
        scalars = (
            torch.einsum("v,ivo,i->o", vector, layer.weights[0], x[row, :2].reshape(-1)) / (6 * 4) ** 0.5
        )
        torch.testing.assert_close(y[row, 0], scalars, rtol=1e-12, atol=1e-12)
        vectors = torch.einsum("v,ivo,di->do", vector, layer.weights[1], x[row, 2:]) / (3 * 4) ** 0.5
        torch.testing.assert_close(y[row, 1:4], vectors, rtol=1e-12, atol=1e-12)
        assert (y[row, 4:] == 0).all()


@pytest.mark.parametrize("irreps", ["0e + 1o + 2e", "0o + 0e + 1o + 1e", "0e", "0e + 0o"])
def test_the_gate_is_that_of_e3nn(irreps):
    irreps, channels = o3.Irreps(irreps).sort().irreps, 3
    ours = Gate(irreps)
    scalars = o3.Irreps([(channels, ir) for _, ir in irreps if ir.l == 0])
    gated = o3.Irreps([(channels, ir) for _, ir in irreps if ir.l > 0])
    gates = o3.Irreps([(channels, "0e") for _ in gated])
    act = {1: torch.nn.functional.silu, -1: torch.tanh}
    with float64_by_default():
        theirs = e3nn_nn.Gate(
            scalars, [act[ir.p] for _, ir in scalars], gates, [act[ir.p] for _, ir in gates], gated
        )
    x = torch.randn(4, ours.irreps_in.dim, channels, dtype=F64)
    blocks = {}
    for irrep, start, copies in irrep_slices(ours.irreps_in):
        blocks[irrep] = x[:, start : start + irrep.dim * copies].reshape(4, irrep.dim, copies, channels)
    even = blocks.get(o3.Irrep("0e"))
    parts = [blocks[ir][:, :, 0].reshape(4, -1) for _, ir in scalars]
    parts += [even[:, 0, 1 + k] for k in range(len(gated))]
    parts += [blocks[ir][:, :, 0].transpose(1, 2).reshape(4, -1) for _, ir in gated]
    expected = theirs.double()(torch.cat(parts, dim=1))
    torch.testing.assert_close(to_e3nn(ours(x), irreps, channels), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("irreps_in", "l_max", "targets"),
    [
        ("0e", 2, "0e + 1o + 2e"),
        ("0e + 1o + 2e", 2, "0e + 1o + 2e"),
        ("0e + 1e + 1o", 1, "0e + 0o + 1o + 1e"),
    ],
)
def test_the_convolution_is_a_tensor_product_of_e3nn_and_a_sum(irreps_in, l_max, targets):
    channels, atoms, edges = 3, 4, 11
    irreps_in, irreps_edge = o3.Irreps(irreps_in), o3.Irreps.spherical_harmonics(l_max)
    spec = convolution_spec(irreps_in, irreps_edge, o3.Irreps(targets))
    order = o3.Irreps([(channels, irrep) for _, _, irrep in spec.paths])
    with float64_by_default():
        theirs = o3.TensorProduct(
            widen(irreps_in, channels),
            irreps_edge,
            order,
            [(i, j, k, "uvu", True) for k, (i, j, _) in enumerate(spec.paths)],
            shared_weights=False,
            internal_weights=False,
        )
    x = torch.randn(atoms, irreps_in.dim, channels, dtype=F64)
    harmonics, weights = (
        torch.randn(edges, irreps_edge.dim, dtype=F64),
        torch.randn(edges, len(spec.paths), channels, dtype=F64),
    )
    centre = torch.randint(0, atoms, (edges,)).sort().values
    edge_index = torch.stack([centre, torch.randint(0, atoms, (edges,))])
    messages = theirs(to_e3nn(x, irreps_in, channels)[edge_index[1]], harmonics, weights.flatten(1))
    sums = torch.zeros(atoms, messages.shape[1], dtype=F64).index_add(0, centre, messages)
    ours = Convolution(spec)(x, harmonics, weights, edge_index)
    # e3nn keeps the order of the paths; ours groups equal irreps, which is a stable sort.
    blocks = [
        sums[:, s].reshape(atoms, channels, ir.dim) for s, (_, ir) in zip(order.slices(), order, strict=True)
    ]
    grouped = {}
    for block, (_, _, irrep) in zip(blocks, spec.paths, strict=True):
        grouped.setdefault(irrep, []).append(block)
    expected = torch.cat([torch.cat(grouped[ir], 1).reshape(atoms, -1) for _, ir in spec.irreps_out], dim=1)
    torch.testing.assert_close(to_e3nn(ours, spec.irreps_out, channels), expected, rtol=0, atol=1e-11)


def test_cutoffs_of_pairs_are_ordered_by_centre_and_neighbour():
    table = pair_cutoffs(("H", "C"), 5.0, [("H", "C", 3.0)])
    assert table.tolist() == [[5.0, 3.0], [5.0, 5.0]]
    for wrong, message in ((("H", "N", 3.0), "N"), (("H", "C", 6.0), "6.0"), (("H", "C", 0.0), "0.0")):
        with pytest.raises(InputError, match=message):
            pair_cutoffs(("H", "C"), 5.0, [wrong])


def test_a_star_stands_for_every_species_and_later_cutoffs_win():
    table = pair_cutoffs(("H", "C", "O"), 5.0, [("H", "*", 3.0), ("*", "H", 4.0), ("O", "H", 2.0)])
    assert table.tolist() == [[4.0, 3.0, 3.0], [4.0, 5.0, 5.0], [2.0, 5.0, 5.0]]
