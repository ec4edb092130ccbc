"""Training from a store without reading it all: the same steps, the same resumption, damaged frames named."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers
from test_resume import run, weights

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.builtin import builtin_atom_energies, load_builtin
from pimlip_zoo.datasets.dataset import FrameDataset
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.store_frames import StoredFrames
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.data import several_electrons

ATOMS = {atomic_numbers[symbol]: e for symbol, e in builtin_atom_energies("ethanol-gfn2").items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "all.lmdb"
    folder.mkdir()
    frames = load_builtin("ethanol-gfn2/train")[:40]
    atoms = [Frame(numbers=np.array([z]), positions=np.zeros((1, 3)), energy=e) for z, e in ATOMS.items()]
    write_store(folder / "shard-00000.lmdb", frames[:25])
    write_store(folder / "shard-00001.lmdb", [*atoms, *frames[25:]])
    return folder


def settings(store, *more):
    return [
        f"data.train={store}",
        "model.channels=4",
        "model.radial_hidden=[4]",
        "trainer.max_steps=9",
        "trainer.valid_every=3",
        "data.energy_references=least_squares",
        *more,
    ]


def prepared(store, *more):
    return experiment.prepare(load_config(None, parse_settings(settings(store, *more))))


def assert_same_weights(a, b):
    one, two = weights(a), weights(b)
    for key in ("state_dict", "current_model_state"):
        assert one[key].keys() == two[key].keys()
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])


@pytest.fixture(scope="module")
def read_at_the_start(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "memory"
    run(folder, settings=settings(store, "data.stream=false"))
    return folder


@pytest.mark.parametrize("more", [[], ["data.num_workers=2"], ["data.cache_mb=0"]])
def test_streaming_a_store_trains_the_same_weights_as_reading_it_at_the_start(
    store, read_at_the_start, tmp_path, more
):
    run(tmp_path / "run", settings=settings(store, *more))
    assert_same_weights(read_at_the_start, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_resumes_exactly_in_the_middle_of_a_pass(store, tmp_path, monkeypatch, workers):
    options = settings(store, f"data.num_workers={workers}", "data.max_edges=400", "data.batch_size=100")
    run(tmp_path / "whole", settings=options)
    run(tmp_path / "parts", settings=options, interrupt=(4, signal.SIGTERM), monkeypatch=monkeypatch)
    run(tmp_path / "parts", settings=options, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_before_the_first_step_only_the_index_and_isolated_atoms_are_read(store, monkeypatch):
    read, get = [], StoredFrames.__getitem__
    monkeypatch.setattr(StoredFrames, "__getitem__", lambda self, i: (read.append(i), get(self, i))[1])
    more = ("model.avg_num_neighbors=8.0", "data.energy_references=auto")
    found = prepared(store, *more, "model.cutoff=5.0")
    assert isinstance(found.train, FrameDataset)
    assert len(found.train) == 36
    assert len(found.valid) == 4
    assert found.references.source == "isolated atoms"
    assert found.references.energies.tolist() == [ATOMS[z] for z in (1, 6, 8)]
    assert len(read) <= 4 * len(ATOMS)
    prepared(store, *more)  # where the cutoff is to follow the data, a few structures are looked at
    assert len(read) <= 8 * len(ATOMS) + 30


def test_ions_are_said_from_memory_and_from_a_store_and_a_store_without_any_is_not_read_for_it(tmp_path):
    frames = [Frame(np.array([8, 1]), np.eye(3)[:2], energy=-1.0, info={"charge": -q}) for q in (0, 1, 1)]
    write_store(tmp_path / "ions.lmdb", frames)
    for given in (frames, StoredFrames(FrameStore(tmp_path / "ions.lmdb"))):
        plain, embedded = (several_electrons(given, embedded=e) for e in (False, True))
        assert "charge -1, charge 0 (2, 1)" in plain
        assert "model.embed_charge=true" in plain
        assert "the model sees both" in embedded
        assert "all structures are of charge -1 (2)" in several_electrons(given[1:], embedded=False)
        assert "learn little" in several_electrons(given[1:], embedded=True)
    write_store(tmp_path / "plain.lmdb", [Frame(np.array([8]), np.zeros((1, 3)), energy=0.0)])
    assert FrameStore(tmp_path / "plain.lmdb").meta[0]["charged"] is False
    assert FrameStore(tmp_path / "ions.lmdb").meta[0]["charged"] is True


def test_statistics_from_the_index_are_those_of_the_frames(store):
    streamed, memory = prepared(store), prepared(store, "data.stream=false")
    assert streamed.labels == memory.labels == ("energy", "forces")
    np.testing.assert_array_equal(streamed.references.energies, memory.references.energies)
    assert torch.equal(streamed.potential.scale, memory.potential.scale)
    assert streamed.potential.model.config == memory.potential.model.config


def test_labels_that_are_not_chosen_are_not_seen(store):
    found = prepared(store, "data.labels=[energy]")
    assert found.frames[0].forces is None
    assert torch.isnan(found.train[0].labels.forces).all()
    assert (found.potential.scale == 1.0).all()


def test_slices_and_single_shards_are_streamed_too(store):
    found = prepared(f"{store}@5:25:2")
    assert isinstance(found.train, FrameDataset)
    assert sorted([*found.frames.indices, *found.valid_frames.indices]) == list(range(5, 25, 2))


def test_validation_structures_from_the_data_are_bounded(store):
    assert len(prepared(store, "data.valid_fraction=0.5", "data.max_valid=3").valid) == 3


def damage(source, folder, word):
    """A copy of the store in which one byte of one frame differs."""
    folder.mkdir()
    for shard in Path(source).iterdir():
        content = bytearray(shard.read_bytes())
        at = content.find(word)
        if at >= 0:
            content[at] ^= 0xFF
        (folder / shard.name).write_bytes(content)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_frame_ends_the_training_with_its_place(store, tmp_path, workers):
    word = load_builtin("ethanol-gfn2/train")[7].positions.tobytes()
    broken = damage(store, tmp_path / "broken.lmdb", word)
    options = settings(broken, f"data.num_workers={workers}", "model.avg_num_neighbors=8.0")
    with pytest.raises(InputError, match=r"broken\.lmdb, frame 7: .*checksum is wrong") as caught:
        run(tmp_path / "run", settings=options)
    assert "Traceback" not in str(caught.value)
