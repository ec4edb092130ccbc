"""Neighbour lists of whole batches by other libraries are those of vesin, and lose no neighbour."""

import importlib.util

import numpy as np
import pytest
import torch
from example_frames import crystal, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.config import load_config
from pimlip_zoo.datasets.device_neighbours import BatchWithoutEdges, batch_without_edges, check_linker, link
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import collate, edge_vectors
from pimlip_zoo.testing.structures import STRUCTURES, structure

SPECIES = ("H", "C", "O")


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


nvalchemi, torch_cluster = needs("nvalchemiops"), needs("torch_cluster")


def pairs(graph):
    """Edges as a sorted table: centre, neighbour, shift, vector."""
    rows = torch.cat([graph.edge_index.T.double(), graph.edge_shift, edge_vectors(graph)], dim=1).numpy()
    return rows[np.lexsort(rows[:, 4::-1].T)]


def assert_linked(frames, cutoff, backend):
    linked = link(batch_without_edges(frames, SPECIES), cutoff, backend)
    expected = collate([frame_to_sample(frame, SPECIES, cutoff) for frame in frames])
    np.testing.assert_allclose(pairs(linked.graph), pairs(expected.graph), rtol=0, atol=1e-12)
    assert (linked.graph.edge_index[0].diff() >= 0).all()
    for name in ("positions", "species", "cell", "batch"):
        assert torch.equal(getattr(linked.graph, name), getattr(expected.graph, name))
    for one, two in zip(linked.labels, expected.labels, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    assert linked.graph.edge_index.dtype == torch.int64


def outside(frame):
    """The same structure with atoms in other images of the cell."""
    shift = np.arange(3 * len(frame.numbers)).reshape(-1, 3) % 3 - 1
    return Frame(frame.numbers, frame.positions + shift @ frame.cell, frame.cell, frame.pbc)


@nvalchemi
@pytest.mark.parametrize("cutoff", [1.0, 4.0, 7.5])
def test_nvalchemi_lists_of_awkward_cells_are_those_of_vesin(cutoff):
    frames = [structure(name, SPECIES) for name in STRUCTURES]
    assert_linked(frames, cutoff, "nvalchemi")
    assert_linked([outside(frame) for frame in frames], cutoff, "nvalchemi")


@nvalchemi
def test_nvalchemi_is_given_more_room_until_no_neighbour_is_lost():
    rng = np.random.default_rng(0)
    dense = Frame(
        rng.choice([1, 6], 200), 3.0 * rng.uniform(size=(200, 3)), 3.0 * np.eye(3), np.ones(3, bool)
    )
    assert len(frame_to_sample(dense, SPECIES, 3.0).graph.edge_index[0]) > 200 * 600
    assert_linked([dense, molecule(1)], 3.0, "nvalchemi")


@torch_cluster
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=5), st.floats(0.5, 9.0)
)
@settings(deadline=None, max_examples=30)
def test_torch_cluster_lists_of_molecules_are_those_of_vesin(kinds, cutoff):
    assert_linked([molecule(seed, size) for seed, size in kinds], cutoff, "torch_cluster")


@torch_cluster
def test_torch_cluster_loses_no_neighbour_of_a_dense_cluster():
    positions = np.random.default_rng(0).uniform(size=(300, 3))  # everybody is everybody's neighbour
    assert_linked([Frame(np.ones(300, dtype=int), positions), molecule(1)], 2.0, "torch_cluster")


@torch_cluster
def test_torch_cluster_refuses_periodic_structures():
    with pytest.raises(InputError, match="periodic"):
        link(batch_without_edges([crystal()], SPECIES), 3.0, "torch_cluster")


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"data\.neighbours.*pyg"):
        check_linker("torch_cluster")


@pytest.mark.parametrize(
    "backend",
    [pytest.param("nvalchemi", marks=nvalchemi), pytest.param("torch_cluster", marks=torch_cluster)],
)
def test_training_with_lists_made_after_the_transfer_gives_the_same_weights(tmp_path, backend):
    from pimlip_zoo import experiment

    data = [("data.train", "builtin:ethanol-gfn2/train@:20"), ("data.valid", "builtin:ethanol-gfn2/valid@:4")]
    small = [("model.channels", 4), ("trainer.max_steps", 4), ("trainer.dtype", "float64")]
    found = []
    for name in ("workers", backend):
        config = load_config(None, [*data, *small, ("data.neighbours", name)])
        prepared = experiment.prepare(config)
        experiment.train(prepared, tmp_path / name)
        found.append(
            torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        )
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-9)


def test_a_batch_without_edges_has_the_rest():
    unlinked = batch_without_edges([molecule(0), crystal(1)], SPECIES)
    assert isinstance(unlinked, BatchWithoutEdges)
    assert unlinked.batch.graph.edge_index.shape == (2, 0)
    assert unlinked.periodic.tolist() == [[False] * 3, [True] * 3]
    assert (torch.linalg.det(unlinked.cell).abs() > 0.5).all()
