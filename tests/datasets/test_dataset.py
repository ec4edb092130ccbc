import struct
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import torch
from example_frames import crystal, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pimlip_zoo.datasets.dataset import (
    FrameDataset,
    MadeSamples,
    as_samples,
)
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.lmdb.record import HEADER, encode
from pimlip_zoo.datasets.molecules import batch_of_records
from pimlip_zoo.datasets.neighbours import frame_to_sample, frames_to_batch
from pimlip_zoo.datasets.sampler import BatchBudget, BudgetSampler
from pimlip_zoo.datasets.store_frames import LABELS, StoredFrames, estimate_edges
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import collate

SPECIES = ("H", "C", "O")


@pytest.fixture(scope="module")
def frames():
    return [(molecule, crystal)[k % 2](k, 1 + k % 7) for k in range(24)]


@pytest.fixture(scope="module")
def path(tmp_path_factory, frames):
    return write_store(tmp_path_factory.mktemp("store") / "a.lmdb", frames)


def assert_equal(a, b):
    for left, right in zip((*a.graph, *a.labels), (*b.graph, *b.labels), strict=True):
        if isinstance(left, torch.Tensor):
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
        else:
            assert left == right


@pytest.mark.parametrize("cache_bytes", [0, 5000, 1 << 20])
def test_samples_are_those_of_the_frames_with_and_without_cache(frames, path, cache_bytes):
    memory = FrameDataset(frames, SPECIES, 4.0, cache_bytes=cache_bytes)
    store = FrameDataset(StoredFrames(FrameStore(path)), SPECIES, 4.0, cache_bytes=cache_bytes)
    assert len(memory) == len(store) == 24
    for _ in range(2):
        for index, frame in enumerate(frames):
            expected = frame_to_sample(frame, SPECIES, 4.0)
            assert_equal(memory[index], expected)
            assert_equal(store[index], expected)


def test_a_part_of_a_store_has_its_own_numbering(frames, path):
    part = FrameDataset(StoredFrames(FrameStore(path), [5, 2, 9]), SPECIES, 4.0)
    assert len(part) == 3
    assert_equal(part[1], frame_to_sample(frames[2], SPECIES, 4.0))
    assert part.sizes()[0].tolist() == [len(frames[i].numbers) for i in (5, 2, 9)]
    with pytest.raises(InputError, match="index 24 is too large: there are 24"):
        StoredFrames(FrameStore(path), [24])


def test_unknown_elements_are_refused_with_the_place_of_the_frame(path):
    with pytest.raises(InputError, match=r"a\.lmdb.*frame \d+.*does not know"):
        list(FrameDataset(StoredFrames(FrameStore(path)), ("H", "C"), 4.0))


def test_sizes_in_memory_are_exact(frames):
    dataset = FrameDataset(frames, SPECIES, 4.5)
    natoms, edges = dataset.sizes()
    for k in range(len(frames)):
        graph = dataset[k].graph
        assert (natoms[k], edges[k]) == (len(graph.positions), graph.edge_index.shape[1])


def test_estimated_edges_are_exact_at_the_cutoff_of_the_index_and_bounded_in_molecules(path, frames):
    dataset = FrameDataset(StoredFrames(FrameStore(path)), SPECIES, 5.0)
    natoms, edges = dataset.sizes()
    assert edges.tolist() == FrameDataset(frames, SPECIES, 5.0).sizes()[1].tolist()
    wide = estimate_edges(edges, natoms, np.array([f.pbc.any() for f in frames]), 5.0, 50.0)
    for k, frame in enumerate(frames):
        if not frame.pbc.any():
            assert wide[k] <= natoms[k] * (natoms[k] - 1)
        elif edges[k]:
            assert wide[k] == 1000 * edges[k]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_batches_with_and_without_workers(path, frames, workers):
    dataset = FrameDataset(StoredFrames(FrameStore(path)), SPECIES, 4.0, cache_bytes=0)
    sampler = BudgetSampler(*dataset.sizes(), BatchBudget(max_structures=5), seed=3)
    batches = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers))
    order = list(BudgetSampler(*dataset.sizes(), BatchBudget(max_structures=5), seed=3))
    assert len(batches) == len(order)
    for batch, indices in zip(batches, order, strict=True):
        assert_equal(batch, collate([frame_to_sample(frames[i], SPECIES, 4.0) for i in indices]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.booleans()), min_size=1, max_size=8))
def test_a_batch_made_at_once_is_the_collated_samples(kinds):
    made = [(crystal if periodic else molecule)(seed, size) for seed, size, periodic in kinds]
    made.append(replace(made[0], forces=None, energy=None, weight=2.0))
    made.append(molecule(3, 60))  # too many atoms for all distances at once
    assert_equal(
        frames_to_batch(made, SPECIES, 3.0), collate([frame_to_sample(f, SPECIES, 3.0) for f in made])
    )


def test_batches_of_molecules_made_from_their_bytes_are_the_collated_samples(tmp_path):
    info = {"config_type": "long"}
    made = [replace(molecule(k, 1 + k % 7), info=info if k % 2 else {}, weight=1.0 + k) for k in range(20)]
    made += [replace(made[0], energy=None), replace(made[1], forces=None), molecule(1, 48)]
    for single in (False, True):
        path = write_store(tmp_path / f"{single}.lmdb", made, float32=single)
        stored = StoredFrames(FrameStore(path))
        for labels in (LABELS, ("forces",), ("energy",)):
            some = stored.with_labels(labels)
            expected = collate([frame_to_sample(frame, SPECIES, 3.0) for frame in some])
            batch = batch_of_records(some.records(range(len(made))), SPECIES, 3.0, some.labels)
            assert batch is not None
            assert_equal(batch, expected)


def wrong(record, start, value):
    """A record with other bytes and the checksum that goes with them."""
    body = record[4:start] + value + record[start + len(value) :]
    return struct.pack("<I", crc32(body)) + body


def test_what_may_be_wrong_with_a_molecule_is_left_to_who_looks_at_it_alone(tmp_path):
    good = molecule(0, 5)
    record = encode(good)
    nan, far = struct.pack("<d", np.nan), struct.pack("<d", 1e100)
    position, number = HEADER.size, len(record) - 5
    assert batch_of_records([record], SPECIES, 3.0, LABELS) is not None
    broken = {
        "checksum": record[:40] + b"?" + record[41:],
        "length": record + b"?",
        "short": record[:-1],
        "header": record[:10],
        "empty": b"",
        "layout": wrong(record, 4, b"\x02"),
        "flags": wrong(record, 6, b"\xff"),
        "periodic": wrong(record, 7, b"\x01"),
        "too many atoms": wrong(record, 8, struct.pack("<I", 1 << 31)),
        "info": wrong(record, 12, struct.pack("<I", 1 << 30)),
        "energy": wrong(record, 16, nan),
        "position": wrong(record, position, nan),
        "forces": wrong(record, position + 120, nan),
        "no element": wrong(record, number, b"\x00"),
        "beyond elements": wrong(record, number, b"\x77"),
        "coinciding": encode(replace(good, positions=np.zeros((5, 3)))),
        "crystal": encode(crystal(0, 5)),
        "large": encode(molecule(0, 49)),
    }
    for name, bad in broken.items():
        for records in ([bad], [record, bad], [bad, record, record]):
            assert batch_of_records(records, SPECIES, 3.0, LABELS) is None, name
    assert batch_of_records([wrong(record, position, far)], SPECIES, 3.0, LABELS) is not None


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_batches_of_a_store_are_the_collated_samples(frames, path, cache_bytes):
    store = FrameDataset(StoredFrames(FrameStore(path)), SPECIES, 4.0, cache_bytes=cache_bytes)
    for indices in ([5, 2, 9, 2], [0]):
        expected = collate([frame_to_sample(frames[i], SPECIES, 4.0) for i in indices])
        assert_equal(store.batch(indices), expected)
    with pytest.raises(InputError, match=r"frame \d+.*does not know"):
        FrameDataset(store.frames, ("C",), 4.0, cache_bytes=0).batch([3, 4])


def test_samples_that_are_made_already_made_later_or_in_a_store_answer_the_same(frames, path):
    later, stored = (
        FrameDataset(frames, SPECIES, 4.0),
        FrameDataset(StoredFrames(FrameStore(path)), SPECIES, 4.0, cache_bytes=0),
    )
    made = as_samples([later[index] for index in range(len(frames))])
    assert isinstance(made, MadeSamples)
    assert as_samples(stored) is stored
    assert [len(samples) for samples in (made, later, stored)] == [24] * 3
    first, *others = (samples.batch([3, 0, 5]) for samples in (made, later, stored))
    for other in others:
        assert_equal(first, other)
    (atoms, edges), of_later, of_stored = (samples.sizes() for samples in (made, later, stored))
    assert atoms.tolist() == of_later[0].tolist() == of_stored[0].tolist()
    assert edges.tolist() == of_later[1].tolist()
    assert [samples.list_cutoff for samples in (made, later, stored)] == [None, 4.0, 4.0]
