"""Weights of structures and of their labels: a factor of their losses, and 0 is as if they were not there."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch

from pimlip_zoo import experiment
from pimlip_zoo.config import load_config, parse_settings
from pimlip_zoo.datasets.builtin import builtin_atom_energies, load_builtin
from pimlip_zoo.datasets.dataset import FrameDataset
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.lmdb import FrameStore, write_store
from pimlip_zoo.datasets.neighbours import frame_to_sample, frames_to_batch
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.summary import facts_of
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Predictions, collate
from pimlip_zoo.losses.base import Evaluated
from pimlip_zoo.losses.supervised import SupervisedTerm
from pimlip_zoo.training.packed_batch import pack, unpack

WEIGHTS = {"config_energy_weight": 2.0, "config_forces_weight": 0.25, "config_stress_weight": 3.0}


def ethanol(count=24):
    return load_builtin("ethanol-gfn2/train")[:count]


def wild(frame, number=9):
    """A structure with another element, 1e6 eV off, with forces of 1e4 eV/Å."""
    numbers = np.where(frame.numbers == 8, number, frame.numbers)
    return replace(frame, numbers=numbers, energy=frame.energy + 1e6, forces=1e4 * frame.forces)


def write(path, frames):
    if path.suffix == ".lmdb":
        return str(write_store(path, frames))
    ase.io.write(path, [frame_to_atoms(frame) for frame in frames])
    return str(path)


def prepared(train, valid, *more):
    given = [
        f"data.train={train}",
        f"data.valid={valid}",
        "model.channels=4",
        "model.radial_hidden=[4]",
        "data.energy_references=least_squares",
        *more,
    ]
    return experiment.prepare(load_config(None, parse_settings(given)))


def assert_same_start(a, b):
    assert a.potential.species == b.potential.species
    assert a.labels == b.labels
    for name in ("energy_references", "scale"):
        one, two = getattr(a.potential, name), getattr(b.potential, name)
        torch.testing.assert_close(one, two, rtol=1e-9, atol=0)
    one, two = a.potential.model.config, b.potential.model.config
    assert one.avg_num_neighbors == pytest.approx(two.avg_num_neighbors, rel=1e-12)
    assert len(a.train) == len(b.train)
    assert len(a.valid) == len(b.valid)


@pytest.mark.parametrize("suffix", [".extxyz", ".lmdb"])
def test_structures_of_weight_0_change_nothing(tmp_path, suffix):
    frames = ethanol()
    train, valid = frames[:18], frames[18:]
    bad = [replace(wild(frame), weight=0.0) for frame in frames[:4]]
    plain = prepared(write(tmp_path / f"a{suffix}", train), write(tmp_path / f"v{suffix}", valid))
    mixed = [bad[0], *train[:9], *bad[1:3], *train[9:], bad[3]]
    among = prepared(write(tmp_path / f"b{suffix}", mixed), write(tmp_path / f"w{suffix}", [*valid, bad[0]]))
    assert_same_start(plain, among)
    assert "F" not in among.potential.species


@pytest.mark.parametrize("suffix", [".extxyz", ".lmdb"])
def test_labels_of_weight_0_change_nothing_while_the_others_stay(tmp_path, suffix):
    frames = ethanol()
    train, valid = frames[:18], frames[18:]
    bad = [
        replace(train[0], energy=train[0].energy + 1e6, label_weights=(0.0, 1.0, 1.0)),
        replace(train[1], forces=1e4 * train[1].forces, label_weights=(1.0, 0.0, 1.0)),
    ]
    none = [replace(train[0], energy=None), replace(train[1], forces=None)]
    at = write(tmp_path / f"v{suffix}", valid)
    plain = prepared(write(tmp_path / f"a{suffix}", [*none, *train[2:]]), at)
    among = prepared(write(tmp_path / f"b{suffix}", [*bad, *train[2:]]), at)
    assert_same_start(plain, among)
    facts = facts_of(among.frames)
    assert facts.count("energy") == facts.count("forces") == 17
    assert among.frames[0].energy is None
    assert among.frames[0].forces is not None
    assert among.frames[1].forces is None
    assert among.frames[1].energy == pytest.approx(train[1].energy)


def test_a_split_from_the_training_set_has_no_structure_of_weight_0(tmp_path):
    frames = [replace(frame, weight=float(i % 2)) for i, frame in enumerate(ethanol())]
    path = write(tmp_path / "a.extxyz", frames)
    config = load_config(None, parse_settings([f"data.train={path}", "data.valid_fraction=0.5"]))
    train, valid = experiment.load_split(config)
    assert len(train) + len(valid) == 12
    assert all(frame.weight == 1 for frame in [*train, *valid])


def test_only_structures_of_weight_0_are_refused(tmp_path):
    path = write(tmp_path / "a.extxyz", [replace(frame, weight=0.0) for frame in ethanol(4)])
    with pytest.raises(InputError, match=r"a\.extxyz, config_weight: every structure has weight 0"):
        prepared(path, path)


@pytest.mark.parametrize("suffix", [".extxyz", ".lmdb"])
def test_isolated_atoms_are_references_whatever_their_weight(tmp_path, suffix):
    energies = builtin_atom_energies("ethanol-gfn2")
    atoms = [
        Frame(numbers=np.array([z]), positions=np.zeros((1, 3)), energy=energies[s], weight=0.0)
        for s, z in (("H", 1), ("C", 6), ("O", 8))
    ]
    train = write(tmp_path / f"a{suffix}", [*ethanol(12), *atoms])
    found = prepared(train, write(tmp_path / f"v{suffix}", ethanol(4)), "data.energy_references=auto")
    assert found.references.source == "isolated atoms"
    expected = [energies[s] for s in found.potential.species]
    np.testing.assert_allclose(found.references.energies, expected, rtol=1e-7)
    assert len(found.train) == 12


def labelled(weights=(1.0, 1.0, 1.0), weight=1.0, n=3, seed=0):
    rng = np.random.default_rng(seed)
    stress = rng.normal(size=(3, 3))
    return Frame(
        numbers=np.ones(n, dtype=np.int64),
        positions=2 * rng.normal(size=(n, 3)),
        cell=np.array([[6.0, 0, 0], [1.5, 5, 0], [-1, 0.7, 7]]),
        pbc=np.ones(3, dtype=bool),
        energy=float(rng.normal()),
        forces=rng.normal(size=(n, 3)),
        stress=stress + stress.T,
        weight=weight,
        label_weights=weights,
    )


def predicted(batch, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    m, n = batch.graph.num_graphs, len(batch.graph.positions)
    shapes = ((m,), (n, 3), (m, 3, 3), (n,))
    return Predictions(*(torch.randn(s, generator=generator, dtype=dtype) for s in shapes))


@pytest.mark.parametrize("quantity", ["energy", "energy_per_atom", "forces", "stress"])
def test_the_weight_of_a_label_is_a_factor_of_its_loss_alone(quantity):
    column = {"energy": 0, "energy_per_atom": 0, "forces": 1, "stress": 2}[quantity]
    weights = [(2.0, 0.25, 3.0), (0.5, 4.0, 1.0), (1.0, 1.0, 0.0)]
    frames = [
        labelled(w, weight=v, n=n, seed=n)
        for w, v, n in zip(weights, (1.0, 2.0, 0.5), (3, 1, 4), strict=True)
    ]
    batch = collate([frame_to_sample(frame, ("H",), 2.0) for frame in frames])
    p = predicted(batch)
    term = SupervisedTerm(quantity)
    alone = []
    for i, frame in enumerate(frames):
        rows = batch.graph.batch == i
        one = Predictions(p.energy[i : i + 1], p.forces[rows], p.virial[i : i + 1], p.atomic_energy[rows])
        plain = replace(frame, label_weights=(1.0, 1.0, 1.0))
        alone.append(term(Evaluated(frame_to_sample(plain, ("H",), 2.0), one)))
    expected = sum(
        frame.label_weights[column] * value.total for frame, value in zip(frames, alone, strict=True)
    )
    found = term(Evaluated(batch, p))
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.count, sum(value.count for value in alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("float32", [False, True])
def test_weights_of_labels_survive_stores_batches_and_parcels(tmp_path, float32):
    frames = [labelled((2.0, 0.25, 3.0), n=3), labelled(n=1, seed=1), labelled((1.0, 1.0, 0.0), 0.5, n=5)]
    frames += [replace(frame, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), stress=None) for frame in frames]
    store = FrameStore(write_store(tmp_path / "a.lmdb", frames, float32=float32))
    assert store.verify() == 6
    assert [store[i].label_weights for i in range(6)] == [frame.label_weights for frame in frames]
    assert store.index["uncounted"].tolist() == [0, 0, 4, 0, 0, 4]
    wanted = torch.tensor([frame.label_weights for frame in frames], dtype=torch.float64)
    from pimlip_zoo.datasets.store_frames import StoredFrames

    made = FrameDataset(StoredFrames(store), ("H",), 3.0, cache_bytes=0).batch(range(6))
    for batch in (made, frames_to_batch(frames, ("H",), 3.0), unpack(pack(made))):
        torch.testing.assert_close(batch.labels.label_weights, wanted, rtol=0, atol=0)


def test_the_names_of_mace_torch_are_read(tmp_path):
    header = " ".join(f"{key}={value}" for key, value in WEIGHTS.items())
    lattice = 'Lattice="6 0 0 0 6 0 0 0 6"'
    text = f"1\n{lattice} Properties=species:S:1:pos:R:3 energy=1 config_weight=0.5 {header}\nH 0 0 0\n"
    (tmp_path / "a.xyz").write_text(text)
    (frame,) = load_frames(str(tmp_path / "a.xyz"))
    assert (frame.weight, frame.label_weights) == (0.5, (2.0, 0.25, 3.0))
    assert not frame.info
    (tmp_path / "b.xyz").write_text(text.replace("config_stress_weight", "config_virials_weight"))
    assert load_frames(str(tmp_path / "b.xyz"))[0].label_weights == (2.0, 0.25, 3.0)
    ase.io.write(tmp_path / "c.xyz", frame_to_atoms(frame), format="extxyz")
    (again,) = load_frames(str(tmp_path / "c.xyz"))
    assert (again.weight, again.label_weights) == (0.5, (2.0, 0.25, 3.0))


@pytest.mark.parametrize("key", ["config_weight", "config_energy_weight", "config_forces_weight"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "word"])
def test_impossible_weights_are_refused(tmp_path, key, value):
    (tmp_path / "a.xyz").write_text(f"1\nProperties=species:S:1:pos:R:3 energy=1 {key}={value}\nH 0 0 0\n")
    with pytest.raises(InputError, match="frame 0"):
        load_frames(str(tmp_path / "a.xyz"))
