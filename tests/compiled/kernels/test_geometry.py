"""Lists of edges, edge vectors, forces: compiled as in plain torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.compiled.kernels.edges import EdgeLists
from pimlip_zoo.compiled.kernels.geometry import edge_geometry
from pimlip_zoo.compiled.kernels.watch import watched_by
from pimlip_zoo.graph import AtomGraph, edge_vectors
from tests.compiled.kernels.test_convolution import needs_compiler

pytestmark = needs_compiler


class Watcher:
    """Lists are made by torch while somebody watches."""

    def called(self, call):
        raise AssertionError(call)

    def made(self, lists, source, rows):
        pass


def graph_of(seed: int, atoms: int, edges: int) -> AtomGraph:
    random = torch.Generator().manual_seed(seed)
    of = torch.randint(0, max(atoms, 1), (2, edges if atoms else 0), generator=random)
    of = of[:, of[0].argsort(stable=True)]
    batch = torch.randint(0, 3, (atoms,), generator=random).sort().values
    draw = lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64)  # noqa: E731
    shift = torch.randint(-2, 3, (of.shape[1], 3), generator=random).to(torch.float64)
    return AtomGraph(
        draw(atoms, 3), torch.zeros(atoms, dtype=torch.int64), of, shift, draw(3, 3, 3), batch, 3
    )


graphs = st.builds(graph_of, st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 40))


@settings(max_examples=40, deadline=None)
@given(graphs)
def test_lists_are_those_of_torch(graph):
    atoms = len(graph.positions)
    found = EdgeLists(graph.edge_index, atoms)
    with watched_by(Watcher()):
        expected = EdgeLists(graph.edge_index, atoms)
        expected.by_centre, expected.by_neighbour  # noqa: B018
    assert "by_neighbour" in found.__dict__
    pairs = [(found.centre, expected.centre), (found.neighbour, expected.neighbour)]
    pairs += [*zip(found.by_centre, expected.by_centre, strict=True)]
    pairs += [*zip(found.by_neighbour, expected.by_neighbour, strict=True)]
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs))


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("place", [0, 1])
def test_an_atom_that_is_not_there_is_named(wrong, place):
    index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    index[place, 2 if wrong > 0 else 0] = wrong
    with pytest.raises(IndexError, match=f"atom {wrong} of 3"):
        EdgeLists(index, 3)


def test_edges_that_are_not_sorted_are_put_in_order():
    lists = EdgeLists(torch.tensor([[2, 0, 1], [0, 1, 2]]), 3)
    first, neighbour, edge = lists.by_centre
    assert first.tolist() == [0, 1, 2, 3]
    assert neighbour.tolist() == [1, 2, 0]
    assert edge.tolist() == [1, 2, 0]


@settings(max_examples=40, deadline=None)
@given(graphs, st.sampled_from([torch.float32, torch.float64]))
def test_vectors_and_forces_are_those_of_torch(graph, dtype):
    atoms, kernels = len(graph.positions), edge_geometry(dtype)
    edges = EdgeLists(graph.edge_index, atoms)
    vectors = kernels.vectors(graph, edges)
    assert vectors.dtype == dtype
    close = {"rtol": 0, "atol": 1e-13 if dtype == torch.float64 else 2e-6}
    torch.testing.assert_close(vectors, edge_vectors(graph).to(dtype), **close)
    opposite = graph._replace(edge_index=graph.edge_index.flip(0), edge_shift=-graph.edge_shift)
    order = opposite.edge_index[0].argsort(stable=True)
    opposite = opposite._replace(
        edge_index=opposite.edge_index[:, order], edge_shift=opposite.edge_shift[order]
    )
    if bool((graph.batch[graph.edge_index[0]] == graph.batch[graph.edge_index[1]]).all()):
        back = kernels.vectors(opposite, EdgeLists(opposite.edge_index, atoms))
        assert torch.equal(back, -vectors[order])
    centre, neighbour = graph.edge_index
    gradient = torch.randn(vectors.shape, dtype=dtype)
    expected = torch.zeros((atoms, 3), dtype=torch.float64)
    expected = expected.index_add(0, centre, gradient.double()).index_add(0, neighbour, -gradient.double())
    torch.testing.assert_close(kernels.forces(gradient, edges), expected, rtol=0, atol=1e-13)
    h = torch.randn((atoms, 3), dtype=torch.float64)
    torch.testing.assert_close(kernels.differences(h, edges), (h[centre] - h[neighbour]).to(dtype))
