"""The built-in sets are what their labels say, and can be made again."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols
from ase.io import read

from pimlip_zoo.datasets.builtin import (
    builtin_atom_energies,
    builtin_names,
    builtin_provenance,
    builtin_splits,
    load_builtin,
)
from pimlip_zoo.datasets.builtin_format import (
    FORCE_RESOLUTION,
    PackedSet,
    read_packed,
)
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.neighbours import frame_to_sample, neighbour_list
from pimlip_zoo.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "builtin_data"))

import make
from cual import KINDS, make_cual
from make import make_builtin
from packing import snap, write_packed


def every_frame(name):
    return [frame for split in builtin_splits(name) for frame in load_builtin(f"{name}/{split}")]


def closest_distance(frame):
    edges, shifts = neighbour_list(frame.positions, frame.cell, frame.pbc, 4.0)
    vectors = frame.positions[edges[1]] - frame.positions[edges[0]] + shifts @ frame.cell
    return np.linalg.norm(vectors, axis=1).min()


def energy_per_atom_without_references(name):
    references = builtin_atom_energies(name)
    return np.array(
        [
            (f.energy - sum(references[chemical_symbols[z]] for z in f.numbers)) / len(f.numbers)
            for f in every_frame(name)
        ]
    )


# What is in them.


def test_ethanol_has_the_splits_that_the_command_line_names():
    counts = {"train": 1000, "valid": 200, "test_300K": 200, "test_600K": 200, "test_1200K": 200}
    assert builtin_splits("ethanol-gfn2") == counts
    for split, count in counts.items():
        frames = load_builtin(f"ethanol-gfn2/{split}")
        assert len(frames) == count
        for frame in frames:
            assert sorted(frame.numbers) == [1] * 6 + [6, 6, 8]
            assert frame.forces.shape == (9, 3)
            assert np.isfinite(frame.energy)
            assert np.isfinite(frame.forces).all()
            assert frame.stress is None
            assert not frame.pbc.any()


def test_a_name_alone_is_the_training_split():
    plain, prefixed = load_builtin("ethanol-gfn2"), load_builtin("builtin:ethanol-gfn2/train")
    assert len(plain) == 1000
    assert [f.energy for f in plain] == [f.energy for f in prefixed]


def test_no_geometry_is_in_two_splits_or_twice_in_one():
    for name in builtin_names():
        frames = every_frame(name)
        keys = {(f.numbers.tobytes(), f.positions.tobytes(), f.cell.tobytes()) for f in frames}
        assert len(keys) == len(frames)
    trajectories = {}
    for split in builtin_splits("ethanol-gfn2"):
        for frame in load_builtin(f"ethanol-gfn2/{split}"):
            trajectories.setdefault(frame.info["trajectory"], set()).add(split)
    assert all(len(splits) == 1 for splits in trajectories.values())


def test_the_first_frames_of_a_split_are_a_sample_of_all_its_trajectories():
    times = [frame.info["time_fs"] for frame in load_builtin("ethanol-gfn2")[:50]]
    assert times != sorted(times)
    assert len({frame.info["trajectory"] for frame in load_builtin("ethanol-gfn2")[:50]}) == 2


def test_hotter_ethanol_has_larger_forces_and_stays_ethanol():
    rms = []
    for split in ("test_300K", "test_600K", "test_1200K"):
        frames = load_builtin(f"ethanol-gfn2/{split}")
        rms.append(np.sqrt(np.mean([frame.forces**2 for frame in frames])))
        for frame in frames:
            distances = frame_to_atoms(frame).get_all_distances()
            heavy = frame.numbers > 1
            to_heavy = distances[~heavy][:, heavy].min(axis=1)
            assert (to_heavy < 1.5).all()  # every hydrogen is bonded
            assert np.sort(distances[np.ix_(heavy, heavy)][np.triu_indices(3, 1)])[1] < 2.0
            assert closest_distance(frame) > 0.7
    # Equipartition: mean square forces grow with the temperature, in proportion for harmonic bonds.
    assert rms[0] < rms[1] < rms[2]
    np.testing.assert_allclose(np.array(rms) ** 2 / rms[0] ** 2, [1, 2, 4], rtol=0.3)


def test_forces_of_ethanol_have_no_net_force_and_no_torque():
    for frame in every_frame("ethanol-gfn2")[::10]:
        centred = frame.positions - frame.positions.mean(axis=0)
        np.testing.assert_allclose(frame.forces.sum(axis=0), 0, atol=9 * FORCE_RESOLUTION)
        np.testing.assert_allclose(np.cross(centred, frame.forces).sum(axis=0), 0, atol=2e-6)


def test_copper_aluminium_has_the_odd_cells_that_periodic_code_must_take():
    for split in builtin_splits("cual-emt"):
        frames = load_builtin(f"cual-emt/{split}")
        assert {frame.info["config_type"] for frame in frames} == set(KINDS)
        sizes = [len(frame.numbers) for frame in frames]
        assert min(sizes) == 1
        assert max(sizes) == 108
        assert {tuple(frame.pbc.tolist()) for frame in frames} == {(True, True, True), (True, True, False)}
        assert any(np.linalg.det(frame.cell) < 0 for frame in frames)
        assert any(np.linalg.det(frame.cell) == 0 for frame in frames)
        assert {tuple(sorted(set(frame.numbers.tolist()))) for frame in frames} >= {(13,), (29,), (13, 29)}
        for frame in frames:
            assert (frame.stress is None) == (np.linalg.det(frame.cell) == 0)
            assert closest_distance(frame) > 1.9
            np.testing.assert_allclose(
                frame.forces.sum(axis=0), 0, atol=len(frame.numbers) * FORCE_RESOLUTION
            )
    assert 200 <= len(every_frame("cual-emt")) <= 400


def test_every_frame_becomes_a_sample_for_a_model():
    for name, species in (("ethanol-gfn2", ["H", "C", "O"]), ("cual-emt", ["Cu", "Al"])):
        for frame in every_frame(name)[::17]:
            sample = frame_to_sample(frame, species, 5.0)
            assert sample.labels.energy.item() == frame.energy
            assert sample.labels.stress.isnan().all() == (frame.stress is None)


def test_energies_lie_within_physical_range_of_their_isolated_atoms():
    ethanol = energy_per_atom_without_references("ethanol-gfn2")
    assert (ethanol > -4.1).all()  # about 36 eV of atomisation energy over 9 atoms
    assert (ethanol < -3.6).all()
    metal = energy_per_atom_without_references("cual-emt")
    assert (metal > -3.6).all()
    assert (metal < -2.5).all()


def test_provenance_states_units_licence_level_of_theory_and_counts():
    for name in builtin_names():
        provenance = builtin_provenance(name)
        assert provenance["name"] == name
        assert provenance["licence"].startswith("MIT")
        assert provenance["units"]["energy"] == "eV"
        assert provenance["level_of_theory"]
        assert {s: d["frames"] for s, d in provenance["splits"].items()} == builtin_splits(name)
        json.dumps(provenance)


def test_the_files_are_small_and_hold_no_pickle():
    folder = resources.files("pimlip_zoo.datasets") / "data"
    sizes = [len((folder / f"{name}.npz").read_bytes()) for name in builtin_names()]
    assert sum(sizes) <= 2_000_000
    for name in builtin_names():
        with (folder / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            assert all(archive[key].dtype != object for key in archive.files)


# Labels belong to geometries.


def test_ethanol_labels_are_those_of_tblite():
    pytest.importorskip("tblite")
    from ethanol import gfn2_atom_energies, label_gfn2

    for split in builtin_splits("ethanol-gfn2"):
        for frame in load_builtin(f"ethanol-gfn2/{split}")[:5]:
            again = label_gfn2(frame_to_atoms(frame))
            # Centring moves the geometry by up to a grid point, the energy by less than 1e-6 * |sum of F|.
            np.testing.assert_allclose(again.positions, frame.positions, atol=1.1e-6)
            np.testing.assert_allclose(again.energy, frame.energy, rtol=0, atol=1e-5)
            np.testing.assert_allclose(again.forces, frame.forces, rtol=0, atol=2e-4)
    energies = builtin_atom_energies("ethanol-gfn2")
    again = gfn2_atom_energies({"H": 1, "C": 2, "O": 2})
    assert again == pytest.approx(energies, abs=1e-6)


def test_ethanol_labels_hold_for_exactly_the_stored_geometry():
    pytest.importorskip("tblite")
    from tblite.ase import TBLite

    for frame in load_builtin("ethanol-gfn2/test_1200K")[:10]:
        atoms = frame_to_atoms(frame)
        atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
        np.testing.assert_allclose(atoms.get_potential_energy(), frame.energy, rtol=0, atol=1e-7)
        np.testing.assert_allclose(atoms.get_forces(), frame.forces, rtol=0, atol=2e-6)


def test_copper_aluminium_labels_are_those_of_ase():
    from ase import Atoms
    from ase.calculators.emt import EMT

    frames = every_frame("cual-emt")
    for frame in frames[::6]:
        atoms = frame_to_atoms(frame)
        atoms.calc = EMT()
        np.testing.assert_allclose(atoms.get_potential_energy(), frame.energy, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), frame.forces, rtol=0, atol=0.6 * FORCE_RESOLUTION)
        if frame.stress is not None:
            np.testing.assert_allclose(atoms.get_stress(voigt=False), frame.stress, rtol=0, atol=1e-10)
    for symbol, energy in builtin_atom_energies("cual-emt").items():
        assert Atoms(symbol, calculator=EMT()).get_potential_energy() == pytest.approx(energy, abs=1e-12)


def test_stress_is_the_strain_derivative_over_the_volume_also_in_left_handed_and_open_cells():
    from ase.calculators.emt import EMT

    frames = [f for f in load_builtin("cual-emt") if f.stress is not None]
    left_handed = [f for f in frames if np.linalg.det(f.cell) < 0]
    open_ = [f for f in frames if not f.pbc.all() and len(f.numbers) < 12]
    single = [f for f in frames if len(f.numbers) == 1]
    for frame in (left_handed[0], open_[0], single[0]):
        for a, b in ((0, 0), (2, 2), (0, 1)):
            energies = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[a, b] = strain[b, a] = sign * 1e-5 * (1.0 if a == b else 0.5)
                atoms = frame_to_atoms(frame)
                atoms.set_cell(frame.cell @ (np.eye(3) + strain))
                atoms.positions = frame.positions @ (np.eye(3) + strain)
                atoms.calc = EMT()
                energies.append(atoms.get_potential_energy())
            derivative = (energies[0] - energies[1]) / 2e-5 / abs(np.linalg.det(frame.cell))
            np.testing.assert_allclose(derivative, frame.stress[a, b], rtol=0, atol=1e-6)


# Making them again.


def test_the_same_seed_makes_the_same_copper_aluminium_and_another_seed_another():
    small = {"train": 0.05}
    first, second = make_cual(seed=3, plan=small), make_cual(seed=3, plan=small)
    other = make_cual(seed=4, plan=small)
    assert [f.energy for f in first.splits["train"]] == [f.energy for f in second.splits["train"]]
    assert [f.energy for f in first.splits["train"]] != [f.energy for f in other.splits["train"]]


@pytest.mark.slow
def test_the_committed_copper_aluminium_is_what_the_default_seed_makes(tmp_path):
    (path,) = make_builtin("cual-emt", tmp_path / "set.npz")
    made = read_packed(path)
    for split, frames in made.splits.items():
        stored = load_builtin(f"cual-emt/{split}")
        for frame, other in zip(frames, stored, strict=True):
            np.testing.assert_allclose(frame.positions, other.positions, rtol=0, atol=1.1e-6)
            np.testing.assert_allclose(frame.energy, other.energy, rtol=0, atol=1e-4)


def test_the_same_seed_makes_the_same_ethanol_for_as_long_as_rounding_stays_small():
    pytest.importorskip("tblite")
    from ethanol import SplitPlan, make_ethanol

    plan = {"hot": SplitPlan(600.0, 3, trajectories=2)}
    calls = []
    first = make_ethanol(seed=1, plan=plan, equilibration=20.0, progress=lambda *a: calls.append(a))
    second = make_ethanol(seed=1, plan=plan, equilibration=20.0)
    other = make_ethanol(seed=2, plan=plan, equilibration=20.0)
    assert calls == [("hot", 1, 3), ("hot", 2, 3), ("hot", 3, 3)]
    assert len(first.splits["hot"]) == 3
    for a, b, c in zip(*(data.splits["hot"] for data in (first, second, other)), strict=True):
        # The last bit of a force depends on how arrays lie in memory; dynamics amplifies it.
        np.testing.assert_allclose(a.energy, b.energy, rtol=0, atol=1e-6)
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=2.1e-6)
        np.testing.assert_allclose(a.forces, b.forces, rtol=0, atol=1e-4)
        assert abs(a.energy - c.energy) > 1e-3


def test_without_tblite_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(InputError, match=r"pip install 'pimlip-zoo\[xtb\]'"):
        make_builtin("ethanol-gfn2", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_made_folder_has_a_file_per_split_with_the_same_labels(tmp_path, monkeypatch):
    tiny = make_cual(seed=0, plan={"train": 0.03, "test": 0.03})
    monkeypatch.setitem(make.MAKERS, "cual-emt", lambda **_: tiny)
    paths = make_builtin("cual-emt", tmp_path / "set")
    assert {p.name for p in paths} == {
        "train.extxyz",
        "test.extxyz",
        "isolated_atoms.extxyz",
        "provenance.json",
    }
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == sorted(p.name for p in paths)
    images = read(tmp_path / "set" / "train.extxyz", ":")
    for atoms, frame in zip(images, tiny.splits["train"], strict=True):
        assert atoms.get_potential_energy() == pytest.approx(frame.energy, rel=0, abs=1e-7)
        np.testing.assert_allclose(atoms.positions, frame.positions, rtol=0, atol=1e-8)
        np.testing.assert_allclose(atoms.get_forces(), frame.forces, rtol=0, atol=1e-7)
        if frame.stress is not None:
            np.testing.assert_allclose(atoms.get_stress(voigt=False), frame.stress, rtol=0, atol=1e-7)
        assert atoms.info["config_type"] == frame.info["config_type"]
        assert (atoms.pbc == frame.pbc).all()
    atom = read(tmp_path / "set" / "isolated_atoms.extxyz", "0")
    assert atom.get_potential_energy() == pytest.approx(tiny.atom_energies[atom.get_chemical_formula()])


def test_a_set_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch):
    tiny = make_cual(seed=0, plan={"train": 0.03})
    monkeypatch.setitem(make.MAKERS, "cual-emt", lambda **_: tiny)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        make_builtin("cual-emt", tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        make_builtin("cual-emt", tmp_path / "file" / "set.npz")


# What the user mistypes.


def test_unknown_names_and_splits_are_answered_with_the_nearest_known_ones():
    with pytest.raises(InputError, match="did you mean ethanol-gfn2"):
        load_builtin("ethanol-gfn")
    with pytest.raises(InputError, match="did you mean test_1200K"):
        load_builtin("builtin:ethanol-gfn2/test_1200")
    for function in (builtin_splits, builtin_atom_energies, builtin_provenance):
        with pytest.raises(InputError, match="known: cual-emt, ethanol-gfn2"):
            function("water")
    with pytest.raises(InputError, match="did you mean cual-emt"):
        make_builtin("cual-emd", None)


def test_frames_are_the_callers_own():
    first = load_builtin("cual-emt/valid")
    before = first[1].positions.copy()
    first[1].positions[:] += 1.0
    np.testing.assert_array_equal(load_builtin("cual-emt/valid")[1].positions, before)


# The file format.


@pytest.mark.parametrize("with_forces", [lambda n: True, lambda n: n == 5, lambda n: n != 5, lambda n: False])
def test_packed_structures_come_back_as_they_were(tmp_path, with_forces):
    generator = np.random.default_rng(0)
    frames = [
        Frame(
            numbers=generator.integers(1, 90, size=n),
            positions=snap(generator.normal(scale=30, size=(n, 3))),
            cell=generator.normal(size=(3, 3)),
            pbc=generator.random(3) < 0.5,
            energy=float(generator.normal() * 1e4),
            forces=generator.normal(size=(n, 3)) * 50 if with_forces(n) else None,
            stress=generator.normal(size=(3, 3)) if n % 2 else None,
            info={"config_type": f"a{n}", "time_fs": 0.5 * n},
        )
        for n in (1, 5, 2)
    ]
    data = PackedSet({"a": frames[:2], "empty": [], "b": frames[2:]}, {"H": -1.5}, {"units": {"length": "Å"}})
    write_packed(tmp_path / "x.npz", data)
    write_packed(tmp_path / "y.npz", data)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    back = read_packed(tmp_path / "x.npz")
    assert {name: len(split) for name, split in back.splits.items()} == {"a": 2, "empty": 0, "b": 1}
    assert back.atom_energies == data.atom_energies
    assert back.provenance == data.provenance
    for frame, original in zip([*back.splits["a"], *back.splits["b"]], frames, strict=True):
        for field in ("numbers", "positions", "cell", "pbc"):
            np.testing.assert_array_equal(getattr(frame, field), getattr(original, field))
        assert frame.energy == original.energy
        assert (frame.forces is None) == (original.forces is None)
        if frame.forces is not None:
            np.testing.assert_allclose(frame.forces, original.forces, rtol=0, atol=0.501 * FORCE_RESOLUTION)
        assert (frame.stress is None) == (original.stress is None)
        if frame.stress is not None:
            np.testing.assert_array_equal(frame.stress, original.stress)
        assert frame.info == original.info


def test_what_the_format_cannot_hold_is_refused_and_leaves_no_file(tmp_path):
    good = Frame(np.array([1]), np.zeros((1, 3)), energy=0.0, forces=np.zeros((1, 3)))

    def write(frame):
        write_packed(tmp_path / "x.npz", PackedSet({"a": [frame]} if frame else {}, {}, {}))

    with pytest.raises(ValueError, match="no frame"):
        write(None)
    with pytest.raises(ValueError, match="needs an energy"):
        write(Frame(good.numbers, good.positions, forces=good.forces))
    with pytest.raises(ValueError, match="off the grid"):
        write(Frame(good.numbers, np.full((1, 3), 1e-7), energy=0.0, forces=good.forces))
    for force in (1e3, np.nan):
        with pytest.raises(ValueError, match="range"):
            write(Frame(good.numbers, good.positions, energy=0.0, forces=np.full((1, 3), force)))
    assert list(tmp_path.iterdir()) == []


def test_another_format_version_is_refused(tmp_path, monkeypatch):
    good = Frame(np.array([1]), np.zeros((1, 3)), energy=0.0, forces=np.zeros((1, 3)))
    monkeypatch.setattr("packing.FORMAT", 2)
    write_packed(tmp_path / "x.npz", PackedSet({"a": [good]}, {}, {}))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2"):
        read_packed(tmp_path / "x.npz")
