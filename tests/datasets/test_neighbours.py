import numpy as np
import pytest
import torch
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.datasets.neighbours import neighbour_list, species_indices
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import AtomGraph, edge_vectors


def as_set(centre, neighbour, shift):
    return {
        (int(i), int(j), *(int(s) for s in row)) for i, j, row in zip(centre, neighbour, shift, strict=True)
    }


@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 9, 47, 48, 49, 80]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([2.0, 4.5, 7.0]),
)
@settings(max_examples=80, deadline=None)
def test_pairs_are_those_of_ase_for_any_periodicity(seed, n, pbc, cutoff):
    rng = np.random.default_rng(seed)
    cell = 5.0 * np.eye(3) + rng.normal(size=(3, 3)) * 1.2
    cell *= rng.choice([-1, 1])  # left-handed cells, too
    positions = rng.normal(size=(n, 3)) * 4.0
    pbc = np.array(pbc)
    if n > 10 and pbc.all():
        cell *= (n / 10) ** (1 / 3)
    edges, shift = neighbour_list(positions, cell, pbc, cutoff)
    i, j, s = primitive_neighbor_list("ijS", pbc, cell, positions, cutoff, self_interaction=False)
    assert as_set(*edges, shift) == as_set(i, j, s)
    assert (np.diff(edges[0]) >= 0).all(), "sorted by centre"
    graph = AtomGraph(
        torch.tensor(positions),
        torch.zeros(n, dtype=torch.int64),
        torch.tensor(edges),
        torch.tensor(shift),
        torch.tensor(cell).unsqueeze(0),
        torch.zeros(n, dtype=torch.int64),
        1,
    )
    lengths = edge_vectors(graph).norm(dim=1)
    assert (lengths < cutoff + 1e-12).all()


def test_nothing_has_no_neighbours():
    for n in (0, 1):
        edges, shift = neighbour_list(np.zeros((n, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool), 5.0)
        assert edges.shape == (2, 0)
        assert shift.shape == (0, 3)
        assert edges.dtype == np.int64


def test_a_lone_atom_in_a_thin_cell_has_its_images():
    edges, shift = neighbour_list(np.zeros((1, 3)), 2.0 * np.eye(3), np.ones(3, dtype=bool), 2.5)
    assert edges.shape == (2, 6)
    assert np.abs(shift).sum() == 6


@pytest.mark.parametrize(
    ("cell", "message"), [(np.diag([5.0, 5, 0]), "direction c is periodic"), (np.ones((3, 3)), "singular")]
)
def test_impossible_cells_are_refused(cell, message):
    with pytest.raises(InputError, match=message):
        neighbour_list(np.zeros((2, 3)), cell, np.ones(3, dtype=bool), 3.0)


def test_species_are_numbered_by_the_list_and_unknown_ones_named():
    assert species_indices(np.array([8, 1, 1]), ["H", "O"]).tolist() == [1, 0, 0]
    assert species_indices(np.array([8, 1, 1]), ["O", "H"]).tolist() == [0, 1, 1]
    with pytest.raises(InputError, match="the model does not know C, 200"):
        species_indices(np.array([6, 1, 200]), ["H", "O"])


@pytest.mark.parametrize(
    ("cell", "cutoff"),
    [
        ([[5, 0, 0], [4.999999999, 1e-4, 0], [0, 0, 5]], 6.0),  # skewed to nothing
        (5 * np.eye(3), 1e3),
        (5 * np.eye(3), 1e12),
        (0.05 * np.eye(3), 6.0),
    ],
)
def test_a_cell_with_images_without_end_is_refused_at_once(cell, cutoff):
    with pytest.raises(InputError, match=r"images of the cell lie within .* its thinnest direction has"):
        neighbour_list(np.zeros((1, 3)), np.array(cell, dtype=float), np.ones(3, dtype=bool), cutoff)


def test_thin_cells_that_occur_have_their_lists():
    edges, _ = neighbour_list(np.zeros((1, 3)), 2.2 * np.eye(3), np.ones(3, dtype=bool), 15.0)
    assert edges.shape[1] > 1000
    slab = np.random.default_rng(0).random((800, 3)) * [2.0, 90.0, 90.0]
    edges, _ = neighbour_list(slab, np.diag([2.0, 90.0, 90.0]), np.array([True, True, False]), 6.0)
    assert edges.shape[1] > 1000
