"""Compiled radial functions and harmonics equal plain torch in every derivative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.compiled.kernels import geometry_is_leaf, geometry_only, use_kernels
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.nn.edges import EdgeEmbedding

pytestmark = pytest.mark.compiler


def case(l_max, edges, dtype=torch.float64, order=6.0, pairs=()):
    generator = torch.Generator().manual_seed(7)
    module = EdgeEmbedding(
        ["H", "C"],
        cutoff=5.0,
        l_max=l_max,
        num_basis=8,
        prefactor=0.3,
        cutoff_order=order,
        species_cutoffs=pairs,
    )
    vectors = 2.2 * torch.randn(edges, 3, generator=generator, dtype=torch.float64)
    graph = AtomGraph(
        positions=torch.zeros(4, 3, dtype=torch.float64),
        species=torch.tensor([0, 1, 0, 1]),
        edge_index=torch.randint(4, (2, edges), generator=generator),
        edge_shift=torch.zeros(edges, 3, dtype=torch.float64),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        batch=torch.zeros(4, dtype=torch.int64),
        num_graphs=1,
    )
    return module.to(dtype), vectors.to(dtype).requires_grad_(), graph


def sweeps(module, vectors, graph, backend, *, leaf=False):
    generator = torch.Generator().manual_seed(8)
    like = lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)  # noqa: E731
    with use_kernels(backend):
        with geometry_is_leaf(leaf):
            values = module(vectors, graph)
        cotangents = [like(value).requires_grad_() for value in values]
        with geometry_only():
            (gradient,) = torch.autograd.grad(values, vectors, cotangents, create_graph=True)
        wanted = cotangents if leaf else [*cotangents, vectors]
        return [*values, gradient, *torch.autograd.grad((gradient * like(gradient)).sum(), wanted)]


def assert_same(left, right, tolerance):
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert (a - b).detach().abs().max() <= tolerance * max(1.0, float(b.detach().abs().max()))


@settings(max_examples=8, deadline=None)
@given(
    l_max=st.integers(1, 4),
    edges=st.integers(0, 40),
    order=st.sampled_from([2.0, 5.0, 6.0]),
    pairs=st.sampled_from([(), (("H", "C", 3.5),)]),
    leaf=st.booleans(),
)
def test_equals_plain_torch_in_all_derivatives(l_max, edges, order, pairs, leaf):
    module, vectors, graph = case(l_max, edges, order=order, pairs=pairs)
    expected = sweeps(module, vectors, graph, "reference")
    ours = sweeps(module, vectors, graph, "cpu", leaf=leaf)
    assert_same(ours, expected[: len(ours)], 1e-11)


def test_float32_is_as_exact_as_float32_is():
    module, vectors, graph = case(3, 500)
    exact = sweeps(module, vectors, graph, "reference")
    module, vectors, graph = case(3, 500, torch.float32)
    assert_same([t.double() for t in sweeps(module, vectors, graph, "cpu")], exact, 1e-5)


def test_gradgradcheck_of_the_kernels():
    module, vectors, graph = case(2, 4)
    with use_kernels("cpu"):
        assert torch.autograd.gradcheck(lambda v: module(v, graph), vectors)
        assert torch.autograd.gradgradcheck(lambda v: module(v, graph), vectors)


@pytest.mark.parametrize("options", [{"trainable": True}, {"cutoff_order": 5.5}])
def test_what_has_no_kernel_runs_in_torch(options):
    torch.manual_seed(0)
    _, vectors, graph = case(2, 6)
    module = EdgeEmbedding(["H", "C"], cutoff=5.0, l_max=2, num_basis=4, **options).double()
    with use_kernels("cpu"):
        ours = module(vectors, graph)
    with use_kernels("reference"):
        assert_same(ours, module(vectors, graph), 0.0)
