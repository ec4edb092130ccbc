"""Batches, edge vectors, volumes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample, neighbour_list, species_indices
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import (
    cell_volume,
    collate,
    edge_vectors,
    join,
    stress_from_virial,
    sum_by_structure,
)
from pimlip_zoo.testing import STRUCTURES, structure

SPECIES = ("H", "C", "O")


def reference_pairs(frame, cutoff):
    from ase import Atoms
    from ase.neighborlist import neighbor_list

    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    i, j, shift = neighbor_list("ijS", atoms, cutoff)
    return sorted(zip(i.tolist(), j.tolist(), map(tuple, shift.tolist()), strict=True))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("cutoff", [1.3, 4.0, 7.1])
def test_the_neighbour_list_is_that_of_ase_and_sorted_by_centre(name, cutoff):
    frame = structure(name, SPECIES)
    edge_index, shift = neighbour_list(frame.positions, frame.cell, frame.pbc, cutoff)
    found = sorted(zip(*edge_index.tolist(), map(tuple, shift.astype(int).tolist()), strict=True))
    assert found == reference_pairs(frame, cutoff)
    assert (np.diff(edge_index[0]) >= 0).all()


@given(
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
    atoms=st.integers(1, 5),
    flip=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_random_cells_of_any_periodicity_agree_with_ase(pbc, seed, atoms, flip):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.0, 5.0, 3)) + rng.uniform(-1.0, 1.0, (3, 3))
    cell[2] *= -1 if flip else 1
    frame = Frame(
        numbers=np.ones(atoms, dtype=np.int64),
        positions=rng.uniform(-6, 6, (atoms, 3)),
        cell=cell,
        pbc=np.array(pbc),
    )
    edge_index, shift = neighbour_list(frame.positions, frame.cell, frame.pbc, 3.7)
    found = sorted(zip(*edge_index.tolist(), map(tuple, shift.astype(int).tolist()), strict=True))
    assert found == reference_pairs(frame, 3.7)


def test_edge_vectors_end_at_the_neighbour_and_are_as_long_as_listed():
    for name in STRUCTURES:
        graph = frame_to_sample(structure(name, SPECIES), SPECIES, 4.0).graph
        vectors = edge_vectors(graph)
        assert vectors.shape == (graph.edge_index.shape[1], 3)
        assert (vectors.norm(dim=1) <= 4.0).all()
        for k in range(0, len(vectors), 7):
            i, j = graph.edge_index[:, k]
            expected = graph.positions[j] - graph.positions[i] + graph.edge_shift[k] @ graph.cell[0]
            torch.testing.assert_close(vectors[k], expected, rtol=0, atol=1e-12)


def test_collated_samples_keep_their_own_edges_atoms_and_labels():
    samples = [frame_to_sample(structure(name, SPECIES), SPECIES, 4.0) for name in STRUCTURES]
    batch = collate(samples)
    assert batch.graph.num_graphs == len(STRUCTURES)
    assert torch.equal(
        torch.bincount(batch.graph.batch), torch.tensor([len(s.graph.positions) for s in samples])
    )
    torch.testing.assert_close(
        edge_vectors(batch.graph), torch.cat([edge_vectors(s.graph) for s in samples]), rtol=0, atol=1e-12
    )
    centres = batch.graph.edge_index[0]
    assert (centres.diff() >= 0).all()
    assert (
        batch.graph.batch[batch.graph.edge_index[0]] == batch.graph.batch[batch.graph.edge_index[1]]
    ).all()


def test_nothing_cannot_be_collated():
    with pytest.raises(ValueError, match="empty"):
        collate([])


def test_sums_by_structure_keep_empty_structures():
    batch = collate([frame_to_sample(structure("molecule", SPECIES), SPECIES, 4.0)] * 2)
    graph = batch.graph._replace(num_graphs=3)
    sums = sum_by_structure(torch.ones(10, 2, dtype=torch.float64), graph)
    assert torch.equal(sums, torch.tensor([[5.0, 5.0], [5.0, 5.0], [0.0, 0.0]], dtype=torch.float64))


def test_stress_has_a_sign_a_volume_and_no_value_without_a_cell():
    cell = torch.stack([torch.diag(torch.tensor([2.0, 3.0, -4.0])), torch.zeros(3, 3)]).double()
    virial = torch.ones(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(cell_volume(cell), torch.tensor([24.0, 0.0], dtype=torch.float64))
    stress = stress_from_virial(virial, cell)
    torch.testing.assert_close(
        stress[0], torch.full((3, 3), -1 / 24, dtype=torch.float64), rtol=1e-15, atol=0
    )
    assert stress[1].isnan().all()
    stress[0].sum().backward()
    assert torch.isfinite(virial.grad).all()


def test_an_unknown_element_is_named_with_those_that_are_known():
    with pytest.raises(InputError, match=r"does not know N.*trained on H, C, O"):
        species_indices(np.array([1, 7]), SPECIES)
    with pytest.raises(InputError, match="200"):
        species_indices(np.array([200]), SPECIES)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (np.diag([3.0, 0.0, 3.0]), "direction b is periodic but has no cell vector"),
        (np.array([[1.0, 1, 0], [2, 2, 0], [0, 0, 1]]), "coplanar"),
    ],
)
def test_a_cell_that_cannot_be_periodic_is_refused(cell, message):
    with pytest.raises(InputError, match=message):
        neighbour_list(np.zeros((1, 3)), cell, np.array([True] * 3), 3.0)


def test_joined_graphs_are_those_of_the_collated_samples_and_one_is_handed_back():
    samples = [frame_to_sample(structure(name, SPECIES), SPECIES, 4.0) for name in ("molecule", "molecule")]
    pair = collate(samples)
    joined = join([sample.graph for sample in samples])
    for field in ("positions", "species", "edge_index", "edge_shift", "cell", "batch"):
        assert torch.equal(getattr(joined, field), getattr(pair.graph, field))
    assert joined.num_graphs == 2
    three = join([pair.graph, samples[0].graph])  # structures of several atoms and several structures
    assert torch.equal(three.edge_index, collate([*samples, samples[0]]).graph.edge_index)
    assert torch.equal(three.batch, collate([*samples, samples[0]]).graph.batch)
    assert join([pair.graph]) is pair.graph
