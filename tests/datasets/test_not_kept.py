"""What a store has no place for is said by a conversion: per kind, once."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.readers import load_frames

KINDS = {"constraints", "velocities", "tags", "masses", "charges", "magnetic moments"}


def water(*, plain: bool) -> Atoms:
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[9, 9, 9], pbc=True)
    results = {"energy": -1.0, "forces": np.ones((3, 3))}
    if not plain:
        atoms.set_constraint(FixAtoms([1]))
        atoms.set_velocities(np.full((3, 3), 0.1))
        atoms.set_tags([0, 1, 1])
        atoms.set_masses([16, 2, 2])
        atoms.set_initial_charges([-0.8, 0.4, 0.4])
        atoms.set_initial_magnetic_moments([1, 0, 0])
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info["config_type"] = "liquid"
    return atoms


def written(folder, name, frames):
    path = folder / name
    if path.suffix == ".db":
        from ase.db import connect

        with connect(path) as rows:
            for atoms in frames:
                rows.write(atoms)
    else:
        import ase.io

        ase.io.write(path, frames)
    return path


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db", "a.json"])
def test_every_kind_that_is_lost_is_named(name, tmp_path):
    frames = [water(plain=True), water(plain=False), water(plain=False)]
    result = convert(str(written(tmp_path, name, frames)), tmp_path / "a.lmdb")
    assert set(result.not_kept) == KINDS
    assert set(FrameStore(tmp_path / "a.lmdb").meta[0]["not_kept"]) == KINDS
    plain = convert(str(written(tmp_path, f"b{name[1:]}", [water(plain=True)])), tmp_path / "b.lmdb")
    assert plain.not_kept == ()


def test_it_is_said_once_on_the_screen_and_by_every_shard(tmp_path):
    path = written(tmp_path, "a.extxyz", [water(plain=True)] * 2 + [water(plain=False)] * 3)
    done = CliRunner().invoke(
        app, ["data", "convert", str(path), "-o", str(tmp_path / "a.lmdb"), "--shard-size", "2"]
    )
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert said.count("not kept") == 1
    assert f"no place for it: {', '.join(sorted(KINDS))} 5 structures" in said
    done = CliRunner().invoke(
        app, ["data", "convert", str(tmp_path / "a.lmdb"), "-o", str(tmp_path / "b.lmdb")]
    )
    assert "not kept" not in done.output


def test_other_columns_and_fields_are_called_by_their_names(tmp_path):
    atoms = water(plain=True)
    atoms.arrays["spin_x"] = np.ones(3)
    atoms.info["quadrupole"] = np.ones((3, 3))
    path = written(tmp_path, "a.extxyz", [atoms])
    assert convert(str(path), tmp_path / "a.lmdb").not_kept == ("quadrupole", "spin_x")
    done = CliRunner().invoke(app, ["data", "convert", str(path), "-o", str(tmp_path / "b.lmdb")])
    assert "quadrupole, spin_x" in done.output


def test_formats_of_arrays_say_which_they_are_not_read(tmp_path):
    system = tmp_path / "system"
    (system / "set.000").mkdir(parents=True)
    (system / "type.raw").write_text("0 0\n")
    (system / "type_map.raw").write_text("H\n")
    (system / "nopbc").touch()
    np.save(system / "set.000" / "coord.npy", np.arange(6.0)[None])
    np.save(system / "set.000" / "dipole.npy", np.zeros((1, 3)))
    assert convert(str(system), tmp_path / "a.lmdb").not_kept == ("dipoles",)
    arrays = {"z": [8, 1], "R": np.arange(6.0).reshape(1, 2, 3), "E": [0.0], "e_unit": "eV", "r_unit": "Ang"}
    np.savez(tmp_path / "a.npz", **arrays, name="water", D=np.zeros((1, 3)))
    assert convert(str(tmp_path / "a.npz"), tmp_path / "b.lmdb").not_kept == ("D",)
    (tmp_path / "input.data").write_text(
        "begin\natom 0 0 0 H 0.5 0 0 0 0\natom 0 0 1 H 0 0 0 0 0\nenergy 1\ncharge 0\nend\n"
    )
    assert convert(f"{tmp_path}/input.data?energy=eV&length=Å", tmp_path / "c.lmdb").not_kept == ("charges",)


@pytest.mark.parametrize(
    ("columns", "header", "says"),
    [
        ("forces:R:3", "energy_Ha=-76.0", "without energy: energy_Ha is no name of it"),
        ("forces:R:3", "E_hartree=-76.0", "?energy_key=E_hartree&energy=UNIT"),
        ("forces_Ha_Bohr:R:3", "energy=-76.0", "without forces: forces_Ha_Bohr is no name of it"),
        ("forces:R:3", 'energy=-1 stress_GPa="1 0 0 0 1 0 0 0 1"', "?stress_key=stress_GPa&stress=UNIT"),
        ("forces:R:3", 'energy=-1 virial_eV="1 0 0 0 1 0 0 0 1"', "?virial_key=virial_eV&energy=UNIT"),
        ("forces:R:3", "TOTEN=-76.0", "without energy: TOTEN is no name of it"),
        ("frc:R:3", "energy=-76.0", "without forces: frc is no name of it"),
        ("forces:R:3", "energy_gap=0.3 e_above_hull=0.1 kinetic_energy=2.0", None),
        ("forces:R:3", "energy=-76.0 energy_Ha=-2.8", None),
        ("forces:R:3", "energy=-76.0 energy_unit=eV", None),
        ("forces:R:3", "energies_known=T config_energy_weight=2", None),
    ],
)
def test_what_may_be_a_label_by_another_name_is_said_once(columns, header, says, tmp_path, caplog):
    frame = f'2\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3:{columns} {header}\n'
    (tmp_path / "a.extxyz").write_text((frame + "O 0 0 0 0.1 0 0\nH 0.97 0 0 -0.1 0 0\n") * 3)
    load_frames(str(tmp_path / "a.extxyz"))
    assert caplog.text.count("is no name of it") == (says is not None)
    assert says is None or says in caplog.text


def test_what_is_asked_for_by_name_is_not_said_to_be_missing(tmp_path, caplog):
    """One frame of two has it."""
    frame = '1\nProperties=species:S:1:pos:R:3 {}=-1.0 pbc="F F F"\nH 0 0 0\n'
    (tmp_path / "a.extxyz").write_text(frame.format("mine") + frame.format("total_energy_DFT"))
    load_frames(f"{tmp_path / 'a.extxyz'}?energy_key=mine")
    assert "is no name of it" not in caplog.text


@pytest.mark.parametrize(
    "key",
    [
        "weight",
        "sample_weight",
        "energy_weight",
        "REF_energy_weight",
        "config_virial_weight",
        "weight_energy",
    ],
)
def test_a_weight_by_another_name_is_said(key, tmp_path, caplog):
    frame = f'1\nProperties=species:S:1:pos:R:3 energy=-1 {key}=0 atomic_weight=1 pbc="F F F"\nH 0 0 0\n'
    (tmp_path / "a.extxyz").write_text(2 * frame)
    assert [frame.weight for frame in load_frames(str(tmp_path / "a.extxyz"))] == [1.0, 1.0]
    assert caplog.text.count("is no weight that is known") == 1
    assert f"{key} is no weight" in caplog.text


def test_a_weight_that_is_named_is_read(tmp_path, caplog):
    frame = '1\nProperties=species:S:1:pos:R:3 energy=-1 sample_weight=0.5 pbc="F F F"\nH 0 0 0\n'
    (tmp_path / "a.extxyz").write_text(frame)
    assert load_frames(f"{tmp_path / 'a.extxyz'}?weight_key=sample_weight")[0].weight == 0.5
    assert "no weight" not in caplog.text


@pytest.mark.parametrize("rows", [3, 5])
@pytest.mark.parametrize("cut", [0, 1, 2, 7])
def test_a_file_that_ends_within_its_last_number_is_said(rows, cut, tmp_path, caplog):
    """The new line alone may be missing."""
    text = f'{rows}\nProperties=species:S:1:pos:R:3 energy=-1 pbc="F F F"\n'
    text += "".join(f"H {i}.00000000 0.25000000 0.12345678\n" for i in range(rows))
    (tmp_path / "a.extxyz").write_text(text[: len(text) - cut])
    load_frames(str(tmp_path / "a.extxyz"))
    assert ("is its last number complete?" in caplog.text) == (cut > 1)


def test_rows_of_the_frame_before_tell_whether_a_small_one_is_cut(tmp_path, caplog):
    frame = '1\nProperties=species:S:1:pos:R:3 energy=-1 pbc="F F F"\nH 0.10000000 0.25000000 0.12345678\n'
    (tmp_path / "a.extxyz").write_text((3 * frame)[:-4])
    load_frames(str(tmp_path / "a.extxyz"))
    assert "frame 2 ends without a new line" in caplog.text


def test_half_precision_is_said_once_for_each_key(tmp_path, caplog):
    arrays = {
        "z": np.array([8, 1], dtype=np.float16),
        "R": np.arange(6.0).reshape(1, 2, 3),
        "e_unit": "eV",
        "r_unit": "Ang",
    }
    np.savez(
        tmp_path / "a.npz", **arrays, E=np.array([-20.5], dtype=np.float16), F=np.zeros((1, 2, 3), np.float32)
    )
    system = tmp_path / "system"
    for part in ("set.000", "set.001"):
        (system / part).mkdir(parents=True)
        np.save(system / part / "coord.npy", np.arange(6.0)[None].astype(np.float16))
        np.save(system / part / "energy.npy", np.array([1.0]))
    (system / "type.raw").write_text("0 0\n")
    (system / "type_map.raw").write_text("H\n")
    (system / "nopbc").touch()
    load_frames(str(tmp_path / "a.npz"))
    load_frames(str(system))
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert said == [
        "E in half precision (float16) has three digits",
        "coord.npy in half precision (float16) has three digits",
    ]
