import contextlib
import gzip
import importlib.util
import json
import os
import re
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from example_frames import assert_same, crystal, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.datasets.convert import convert
from pimlip_zoo.datasets.coverage import coverage, is_isolated_atom, isolated_atom_energies
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.readers import DataSource, checked, convergence, load_frames, read_frames, scan
from pimlip_zoo.datasets.readers.ase_file import AseFile
from pimlip_zoo.datasets.readers.checks import all_usable, check_frame, coinciding_atoms
from pimlip_zoo.datasets.readers.extxyz import _keys
from pimlip_zoo.datasets.readers.spec import ReadOptions
from pimlip_zoo.deploy.structure import read_structure
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.convergence import check_converged

KCAL = units.kcal / units.mol


def write(path, frames, **options):
    ase.io.write(path, [frame_to_atoms(frame) for frame in frames], **options)
    return str(path)


def header(**labels):
    """A two-atom extxyz frame with a header of one's own."""
    text = " ".join(f"{key}={value}" for key, value in labels.items())
    return f"2\nProperties=species:S:1:pos:R:3 {text}\nH 0 0 0\nH 0 0 0.8\n"


@pytest.mark.parametrize("make", [molecule, crystal])
@pytest.mark.parametrize("suffix", [".extxyz", ".xyz", ".traj", ".db", ".extxyz.gz"])
def test_what_ase_writes_is_read_with_its_labels(tmp_path, make, suffix):
    frames = [make(seed, n) for seed, n in enumerate((1, 2, 5, 7))]
    path = write(tmp_path / f"a{suffix}", frames)
    for frame, read in zip(frames, load_frames(path), strict=True):
        assert_same(frame, read, 6e-9)


def test_slices_are_those_of_python(tmp_path):
    frames = [molecule(seed) for seed in range(9)]
    path = write(tmp_path / "a.extxyz", frames)
    for text in ("2:7:3", "-3:", ":-4", "4", "-1", "::2", "5:100"):
        expected = (
            frames[slice(*(int(v) if v else None for v in text.split(":")))]
            if ":" in text
            else [frames[int(text)]]
        )
        read = load_frames(f"{path}@{text}")
        assert [f.energy for f in read] == pytest.approx([f.energy for f in expected])
    with pytest.raises(InputError, match="no frames"):
        load_frames(f"{path}@100:")


@pytest.mark.parametrize(
    "key", ["REF_energy", "dft_energy", "DFT_energy", "total_energy", "energy", "free_energy"]
)
def test_energies_are_found_under_their_usual_names(tmp_path, key):
    (tmp_path / "a.xyz").write_text(header(**{key: -3.5}))
    assert load_frames(str(tmp_path / "a.xyz"))[0].energy == -3.5


@pytest.mark.parametrize("key", ["forces", "force", "REF_forces", "dft_force"])
def test_forces_are_found_under_their_usual_names(tmp_path, key):
    (tmp_path / "a.xyz").write_text(f"1\nProperties=species:S:1:pos:R:3:{key}:R:3 energy=1\nH 0 0 0 1 2 3\n")
    np.testing.assert_array_equal(load_frames(str(tmp_path / "a.xyz"))[0].forces, [[1, 2, 3]])


def test_labels_of_a_calculator_and_of_info_count_alike(tmp_path):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    atoms.info["REF_energy"] = -1.0
    atoms.arrays["REF_forces"] = np.ones((2, 3))
    ase.io.write(tmp_path / "a.extxyz", atoms)
    frame = load_frames(str(tmp_path / "a.extxyz"))[0]
    assert frame.energy == -1.0
    np.testing.assert_array_equal(frame.forces, np.ones((2, 3)))


def test_two_sources_that_disagree_are_an_error_until_one_is_named(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(header(energy=-1.0) + header(energy=-1.0, REF_energy=-2.0))
    with pytest.raises(InputError, match=r"a\.xyz, frame 1, energy: .*disagree by up to 1"):
        load_frames(str(path))
    path.write_text(header(energy=-1.0, REF_energy=-2.0))
    assert load_frames(f"{path}?energy_key=REF_energy")[0].energy == -2.0
    assert load_frames(f"{path}?energy_key=energy")[0].energy == -1.0


def test_a_named_key_that_no_frame_has_is_an_error_with_a_hint(tmp_path):
    (tmp_path / "a.xyz").write_text(header(my_energy=-1.0))
    assert load_frames(f"{tmp_path}/a.xyz?energy_key=my_energy")[0].energy == -1.0
    with pytest.raises(InputError, match=r"no frame has 'my_enrgy' \(did you mean my_energy"):
        load_frames(f"{tmp_path}/a.xyz?energy_key=my_enrgy")


def test_a_gradient_is_the_forces_with_the_other_sign(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nProperties=species:S:1:pos:R:3:grad:R:3 energy=1\nH 0 0 0 1 2 3\n")
    np.testing.assert_array_equal(
        load_frames(f"{tmp_path}/a.xyz?gradient_key=grad")[0].forces, [[-1, -2, -3]]
    )


def test_virial_is_minus_volume_times_stress(tmp_path):
    frame = crystal()
    atoms = frame_to_atoms(frame)
    atoms.calc = None
    atoms.info["virial"] = -frame.stress * abs(np.linalg.det(frame.cell))
    ase.io.write(tmp_path / "a.extxyz", atoms)
    read = load_frames(str(tmp_path / "a.extxyz"))[0]
    np.testing.assert_allclose(read.stress, frame.stress, atol=1e-7)
    atoms.info["virial"] *= -1
    atoms.info["REF_stress"] = frame.stress
    ase.io.write(tmp_path / "b.extxyz", atoms)
    with pytest.raises(InputError, match="disagree: stress is"):
        load_frames(str(tmp_path / "b.extxyz"))


def test_stress_in_gpa_is_read_when_the_unit_is_named(tmp_path):
    frame = crystal()
    atoms = frame_to_atoms(frame)
    atoms.calc.results["stress"] = atoms.calc.results["stress"] / units.GPa
    ase.io.write(tmp_path / "a.extxyz", atoms)
    read = load_frames(f"{tmp_path}/a.extxyz?stress=GPa")[0]
    np.testing.assert_allclose(read.stress, frame.stress, atol=1e-9)


def test_stress_of_a_molecule_is_no_label(tmp_path):
    (tmp_path / "a.xyz").write_text(header(energy=1, stress='"0 0 0 0 0 0 0 0 0"', pbc='"F F F"'))
    assert load_frames(str(tmp_path / "a.xyz"))[0].stress is None


def test_units_apply_to_every_quantity(tmp_path):
    frame = crystal()
    path = write(tmp_path / "a.extxyz", [frame])
    read = load_frames(f"{path}?energy=Hartree&length=Bohr&stress=eV/Å^3")[0]
    assert read.energy == pytest.approx(frame.energy * units.Hartree)
    np.testing.assert_allclose(read.positions, frame.positions * units.Bohr, atol=1e-8)
    np.testing.assert_allclose(read.cell, frame.cell * units.Bohr, atol=1e-8)
    np.testing.assert_allclose(read.forces, frame.forces * units.Hartree / units.Bohr, atol=1e-6)
    read = load_frames(f"{path}?energy=Hartree&forces=Hartree/Å&stress=GPa")[0]
    np.testing.assert_allclose(read.forces, frame.forces * units.Hartree, atol=1e-6)
    with pytest.raises(InputError, match="unit of stress is not named"):
        load_frames(f"{path}?energy=Hartree")


def bad(**changes):
    return molecule(3, 4, **changes)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (bad(positions=np.full((4, 3), np.nan)), "positions: atom 0 is NaN"),
        (bad(positions=np.diag([1.0, 2, 3, np.inf])[:, 1:]), "positions: atom 3"),
        (bad(energy=float("nan")), "energy: it is NaN"),
        (bad(forces=np.full((4, 3), np.inf)), "forces: atom 0"),
        (bad(positions=np.zeros((4, 3))), "atoms 0 and 1 are on one spot"),
        (bad(numbers=np.array([1, 0, 1, 1])), "atom 1 has atomic number 0"),
        (crystal(cell=np.diag([3.0, 3, 0]), stress=None), "direction c is periodic"),
        (crystal(cell=np.ones((3, 3)), stress=None), "the cell is singular"),
    ],
)
def test_an_impossible_frame_is_named_by_file_index_and_key(tmp_path, frame, message):
    path = write(tmp_path / "a.traj", [molecule(), frame])
    with pytest.raises(InputError, match=rf"a\.traj, frame 1.*{message}"):
        load_frames(path)
    found = []
    assert len(list(read_frames(path, on_bad=found.append))) == 1
    assert [error.frame for error in found] == [1]


BAD = {
    "energy": {"energy": np.nan},
    "forces": {"forces": np.full((5, 3), np.nan)},
    "one force": {"forces": np.where(np.arange(15).reshape(5, 3) == 7, np.inf, 0.0)},
    "positions": {"positions": np.full((5, 3), np.nan)},
    "one spot": {"positions": np.zeros((5, 3))},
    "cell": {"cell": np.full((3, 3), np.nan)},
    "element": {"numbers": np.array([1, 1, 200, 1, 1])},
    "no element": {"numbers": np.array([0, 1, 1, 1, 1])},
    "stress": {"stress": np.full((3, 3), np.inf)},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_frame_among_many_is_told_from_the_good_ones(kind):
    good = [molecule(k, 5) for k in range(6)]
    assert all_usable(good)
    assert not all_usable([*good, molecule(7, 5, **BAD[kind])])
    with pytest.raises(InputError):
        check_frame(molecule(7, 5, **BAD[kind]), file="a", index=0)
    items = [(k, frame) for k, frame in enumerate(good)]
    items[3] = (3, molecule(7, 5, **BAD[kind]))
    found = list(checked(DataSource("a.xyz"), iter(items)))
    assert [index for index, _ in found] == list(range(6))
    assert [isinstance(item, InputError) for _, item in found] == [k == 3 for k in range(6)]
    assert "a.xyz, frame 3" in str(found[3][1])


def test_frames_before_an_error_of_the_reader_come_first():
    def reader():
        yield 0, molecule(0, 5)
        raise InputError("the file ends here")

    items = checked(DataSource("a.xyz"), reader())
    assert next(items)[0] == 0
    with pytest.raises(InputError, match="ends here"):
        next(items)


def test_nan_labels_are_missing_ones_when_it_is_said(tmp_path):
    forces = molecule().forces.copy()
    forces[1] = np.nan
    frames = [
        molecule(energy=float("nan")),
        molecule(forces=forces),
        molecule(forces=np.full((5, 3), np.nan)),
    ]
    path = write(tmp_path / "a.traj", frames)
    a, b, c = load_frames(f"{path}?nan=missing")
    assert a.energy is None
    assert np.isnan(b.forces[1]).all()
    assert np.isfinite(b.forces[0]).all()
    assert c.forces is None


FORCES = "Properties=species:S:1:pos:R:3:forces:R:3"
ROW = "H 0 0 0 1 0 0"


def test_a_structure_to_simulate_has_its_cell_under_its_name_too(tmp_path):
    for comment in (f'{FORCES} cell="5 0 0 0 5 0 0 0 5"', f"{FORCES} Unit_Cell=[5, 5, 5, 90, 90, 90]"):
        (tmp_path / "a.xyz").write_text(f"1\n{FORCES}\n{ROW}\n1\n{comment}\n{ROW}\n")
        with pytest.raises(InputError, match=r"frame 1, (?i:\w*cell): .*write Lattice"):
            read_structure(str(tmp_path / "a.xyz"))
    for comment in (f'{FORCES} box="0 0 0"', f'{FORCES} cell="5 0 0 0 5 0 0 0 5" pbc="F F F"'):
        (tmp_path / "a.xyz").write_text(f"1\n{comment}\n{ROW}\n")
        assert not read_structure(str(tmp_path / "a.xyz")).pbc.any()
        assert not frame_to_atoms(load_frames(str(tmp_path / "a.xyz"))[0]).pbc.any()


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ('lattice="5 0 0 0 5 0 0 0 5"', "lattice"),
        ('LATTICE = "5 0 0 0 5 0 0 0 5"', "LATTICE"),
        ('Lattice="5 0 0 0 5 0 0 0 5" PBC="F F F"', "PBC"),
        ('Lattice="5 0 0 0 5 0 0 0 5" Lattice="6 0 0 0 6 0 0 0 6"', "Lattice"),
        ('Lattice="5 0 0 0 5 0 0 0 5" pbc="FFF"', "pbc"),
        ("properties=species:S:1:pos:R:3", "properties"),
    ],
)
def test_geometry_that_ase_would_pass_over_is_refused_in_data_and_structures_alike(tmp_path, said, key):
    columns = "" if key == "properties" else FORCES
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES}\n{ROW}\n1\n{said} {columns}\n{ROW}\n")
    for read in (load_frames, read_structure):
        with pytest.raises(InputError, match=f"a.xyz, frame 1, {key}: "):
            read(str(tmp_path / "a.xyz"))


@pytest.mark.parametrize("said", ['tv="5 0 0 0 5 0 0 0 5"', 'a="5 0 0" b="0 5 0" c="0 0 5"', 'H0="5 5 5"'])
def test_a_cell_under_another_name_is_refused_in_structures_too(tmp_path, said):
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES} {said}\n{ROW}\n")
    with pytest.raises(InputError, match="write Lattice"):
        read_structure(str(tmp_path / "a.xyz"))


def test_a_structure_that_is_not_finite_is_refused(tmp_path):
    (tmp_path / "a.xyz").write_text(f'1\nLattice="nan 0 0 0 5 0 0 0 5" {FORCES}\n{ROW}\n')
    (tmp_path / "b.xyz").write_text(f"1\n{FORCES}\nH nan 0 0 0 0 0\n")
    for name, words in (("a", "cell: is not finite"), ("b", "positions: are not all finite")):
        with pytest.raises(InputError, match=rf"{name}\.xyz, {words}"):
            read_structure(str(tmp_path / f"{name}.xyz"))


@pytest.mark.parametrize("pbc", ['"T T F"', '"1 1 0"', '"True True False"', "{T T F}"])
def test_periodicity_as_people_write_it_is_the_same_in_data_and_structures(tmp_path, pbc):
    (tmp_path / "a.xyz").write_text(f'1\nLattice="5 0 0 0 5 0 0 0 5" {FORCES} pbc={pbc}\n{ROW}\n')
    (frame,) = load_frames(str(tmp_path / "a.xyz"))
    assert frame.pbc.tolist() == read_structure(str(tmp_path / "a.xyz")).pbc.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("comment", "rows", "message"),
    [
        (f"{FORCES} energy=-1 energy=-2", ROW, "energy: stands twice"),
        (f'{FORCES} Lattice="5 0 0 0 5 0 0 0 5" Lattice="9 0 0 0 9 0 0 0 9"', ROW, "Lattice: stands twice"),
        (f'{FORCES} pbc="T T T" pbc="F F F"', ROW, "pbc: stands twice"),
        (f"{FORCES} {FORCES}", ROW, "Properties: stands twice"),
        (f"{FORCES}:forces:R:3", f"{ROW} 9 9 9", "column forces twice"),
        ("Properties=species:S:1:pos:R:3:pos:R:3", ROW, "column pos twice"),
        ("Properties=species:S:1:pos:R:3:Z:I:1", "H 0 0 0 8", "different elements"),
        ("Properties=species:S:1:pos:S:3", "H 0 0 0", "no numbers"),
        ("Properties=species:S:1:pos:R:3 energy=-1", ROW, "7 columns, expected 4"),
        (FORCES, f"{ROW}\x0c{ROW}", "14 columns, expected 7"),
        (FORCES, f"{ROW}\u2028{ROW}", "14 columns, expected 7"),
        (f"{FORCES} energy=T", ROW, "truth value"),
        (f'{FORCES} Lattice="5 0 0 0 5 0 0 0 5" PBC="F F F"', ROW, "write pbc"),
        (f'{FORCES} lattice="5 0 0 0 5 0 0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} cell="5 0 0 0 5 0 0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} Box="5 5 5" pbc="T T T"', ROW, "write Lattice"),
        (f"{FORCES} unit_cell=[5, 5, 5, 90, 90, 90]", ROW, "write Lattice"),
        (f'{FORCES} box_size="5 5 5"', ROW, "write Lattice"),
        (f'{FORCES} simulation_cell="5, 5, 5"', ROW, "write Lattice"),
        (f"{FORCES} cell=[[5,0,0],[0,5,0],[0,0,5]]", ROW, "write Lattice"),
        (f'{FORCES} cell="(5, 5, 5)"', ROW, "write Lattice"),
        (f'{FORCES} cellpar="5 5 5 90 90 90"', ROW, "write Lattice"),
        (f'{FORCES} Latice="5 0 0 0 5 0 0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} abc="5 5 5"', ROW, "write Lattice"),
        (f"{FORCES} a=5 b=5 c=5 alpha=90 beta=90 gamma=90", ROW, "write Lattice"),
        (f"{FORCES} energy=-1.0 Hartree", ROW, "the header says Hartree by itself"),
        (f"{FORCES} energy=-1.0 kcal/mol", ROW, "the header says kcal/mol by itself"),
        (f"{FORCES} energy=-1.0 units=Hartree", ROW, "the header says units=Hartree.*energy=kcal/mol"),
        (f"{FORCES} energy=-1.0 energy_unit=kcal/mol", ROW, "the header says energy_unit=kcal/mol"),
        (f"{FORCES} Units=real", ROW, "the header says Units=real"),
        (f'{FORCES} units="eV, Bohr"', ROW, "the header says units=eV, Bohr"),
        (f"{FORCES} force_units=kcal/mol/Å", ROW, "the header says force_units"),
        (f"{FORCES} energy=-1_0", ROW, "energy: -1_0 is no number"),
        (f'{FORCES} Lattice="5 0 0 0 5_0 0 0 0 5"', ROW, "Lattice: 5_0 is no number"),
        (FORCES, ROW.replace("0", "0_1", 1), "0_1 is no number"),
        (f'{FORCES} A="5 0 0" B="0 5 0" C="0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} tv="5 0 0 0 5 0 0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} TV_1="5 0 0" TV_2="0 5 0" TV_3="0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} H0="5 0 0 0 5 0 0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} "energy"=-1 energy=-2', ROW, "energy: stands twice"),
        (f"{FORCES} 'energy' = -1 energy=-2", ROW, "energy: stands twice"),
        (f'{FORCES} "lattice"="5 0 0 0 5 0 0 0 5"', ROW, "write Lattice"),
        (f'{FORCES} Lattice="5 0 0 0 5 0 0 0 5" pbc="yes no no"', ROW, "pbc: is not made of T and F"),
        (f'{FORCES} Lattice="5 0 0 0 5 0 0 0 5" pbc="2 0 0"', ROW, "pbc: is not made of T and F"),
        (FORCES.replace("forces:R", "forces:S"), ROW, "forces: is no column of numbers"),
        (FORCES.replace("forces", "Positions"), ROW, "Positions beside its geometry"),
        ("Properties=species:S:1:pos:R:3:Species:S:1", "H 0 0 0 O", "Species beside its geometry"),
    ],
)
def test_an_xyz_file_that_contradicts_itself_is_refused(tmp_path, comment, rows, message):
    (tmp_path / "a.xyz").write_text(f"1\n{comment}\n{rows}\n", encoding="utf8")
    with pytest.raises(InputError, match=rf"a\.xyz, frame 0.*{message}"):
        load_frames(str(tmp_path / "a.xyz"))


@pytest.mark.parametrize(
    ("comment", "options"),
    [
        (f'{FORCES} energy=-1 cell="5 0 0 0 5 0 0 0 5" pbc="F F F"', ""),
        (f'{FORCES} energy=-1 cell="5 0 0 0 5 0 0 0 5" Lattice="5 0 0 0 5 0 0 0 5" pbc="F F F"', ""),
        (f"{FORCES} energy=-1 box=small converged", ""),
        (f'{FORCES} energy=-1 supercell="2 2 2" cell_volume=125.0', ""),
        (f"{FORCES} energy=-1 a=5 b=5 c=5", ""),
        (f"{FORCES} energy=-1 eV", ""),
        (f'{FORCES} energy=-1 energy_unit=eV units="eV Å" force_units=eV/Ang name=1_2 unit=7', ""),
        (f"{FORCES} energy=-1 units=Hartree", "?energy=Hartree&length=Å"),
        (f"{FORCES} energy=-1 units=metal A=1.5 B=1.2 C=0.9", ""),
        (f"{FORCES} energy=-1 Ha", "?energy=Hartree&length=Å"),
    ],
)
def test_what_contradicts_nothing_in_an_xyz_header_is_read(tmp_path, comment, options):
    (tmp_path / "a.xyz").write_text(f"1\n{comment}\n{ROW}\n")
    (frame,) = load_frames(f"{tmp_path / 'a.xyz'}{options}")
    assert not frame.pbc.any()
    assert frame.energy == pytest.approx(-27.2114 if options else -1, rel=1e-5)


STRESS = 'Lattice="9 0 0 0 9 0 0 0 9" stress="1 0 0 0 1 0 0 0 1"'


@pytest.mark.parametrize(
    "said",
    [
        *("stress_units=GPa", 'stress_unit="kbar"', "pressure_units=GPa", 'units="eV,Angstrom,GPa"'),
        *("StressUnits=bar", "stress_unit=eV/nm^3", "stress_unit=voigt", "virial_units=GPa"),
        *("EnergyUnits=Hartree", "energyunit=Ha", "unit_energy=Ha", "units_energy=Ha", "unit_of_energy=Ha"),
        *(
            "energy_units_=Ha",
            "Energy-Units=Ha",
            "energy_in=Ha",
            "REF_energy_unit=Ha",
            "total_energy_unit=Ha",
        ),
        *(
            "lengthUnit=bohr",
            'ForceUnits="Ha/Bohr"',
            "cell_unit=nm",
            "unit_pos=bohr",
            "gradient_unit=Ha/Bohr",
        ),
        *("unit_style=real", "unitsystem=atomic", "units_system=au", "UnitStyle=electron", "units=lj"),
        *('energy_unit="kJ/mole"', 'energy_unit="kcal/mole"', 'energy_unit="kcal mol-1"', "energy_unit=cm-1"),
        *(
            'energy_unit="J/mol"',
            "energy_unit=eV/atom",
            "energy_unit=mHa",
            "energy_unit=au",
            "forces_unit=eV",
        ),
        *("units=a.u", "units=a.u.", 'units="kcal mol^-1"', "units=cm-1", "units=kJ/mole", "dft_units=Ha"),
        *(
            'units={"energy": "Hartree"}',
            'units="energy=Hartree"',
            'units=["Hartree","Bohr"]',
            "units=mHa/Bohr",
        ),
        *('units="dipole: Debye, energy: Ha"', "units='eV/\u212b Ha'", "positions{atomic_unit}"),
    ],
)
def test_units_that_a_header_states_in_any_way_have_to_be_ours(tmp_path, said):
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES} energy=-1 {STRESS} {said}\n{ROW}\n", encoding="utf8")
    with pytest.raises(InputError, match=r"a\.xyz, frame 0, \S+: the header says .* for something else"):
        load_frames(str(tmp_path / "a.xyz"))


@pytest.mark.parametrize(
    "said",
    [
        *(
            "dipole_units=au",
            "polarizability_units=a.u.",
            "dipole_unit=Debye",
            "temperature_unit=K",
            "unit=7",
        ),
        *(
            "time_unit=fs",
            "mass_units=amu",
            "charge_unit=e",
            "quadrupole_units=au",
            "hessian_units=Ha/Bohr^2",
        ),
        *("pressure=5 pressure_units=GPa", "formation_energy=3 formation_energy_unit=kJ/mol", "unity=real"),
        *(
            "cutoff_unit=Ry energy_cutoff_units=Ry",
            "kinetic_energy_unit=K",
            "unit_cell=primitive",
            "spin=real",
        ),
        *(
            "energy_unit=electronvolt",
            'stress_units="eV/Angstrom^3"',
            'units="eV, Angstroms, eV/\u00c5\u00b3"',
        ),
        *(
            'forces_unit="eV \u00c5^-1"',
            "forces_unit=eV/angstrom",
            "length_unit=\u212b",
            "units=ASE",
            "units=metal",
        ),
        *(
            'units={"energy": "eV", "dipole": "au"}',
            'units="energy=eV length=Ang stress=eV/A^3"',
            "virial_unit=eV",
        ),
        *(
            'units="eV/(Angstrom)"',
            "units=e",
            "positions{angstrom} cell{angstrom}",
            "Timestep=100 config_type=bulk",
        ),
    ],
)
def test_units_that_are_ours_or_of_other_quantities_are_read(tmp_path, said):
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES} energy=-1 {STRESS} {said}\n{ROW}\n", encoding="utf8")
    (frame,) = load_frames(str(tmp_path / "a.xyz"))
    assert frame.energy == -1
    assert frame.stress[0, 0] == 1


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("energy_unit=kcal/mole stress_unit=eV/A^3", "?energy=kcal/mol&length=Å&stress=eV/Å^3"),
        ("energy_unit=wavenumbers units=real", "?energy=kcal/mol&length=Å&stress=eV/Å^3"),
        ("stress_units=GPa", "?stress=GPa"),
        ("stress_units=ksi", "?stress=GPa"),
    ],
)
def test_units_that_are_named_count_unless_the_header_has_others(tmp_path, said, options):
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES} energy=-1 {STRESS} {said}\n{ROW}\n")
    (frame,) = load_frames(f"{tmp_path / 'a.xyz'}{options}")
    assert frame.energy == pytest.approx(-KCAL if "energy" in options else -1)
    assert frame.stress[0, 0] == pytest.approx(units.GPa if "GPa" in options else 1)
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES} energy=-1 {STRESS} energy_unit=Ha\n{ROW}\n")
    with pytest.raises(InputError, match="for something else"):
        load_frames(f"{tmp_path / 'a.xyz'}{options}")


def test_a_unit_of_stress_is_of_no_concern_where_no_stress_is_read(tmp_path):
    (tmp_path / "a.xyz").write_text(f'1\n{FORCES} energy=-1 stress_unit=GPa units="eV Å GPa"\n{ROW}\n')
    assert load_frames(str(tmp_path / "a.xyz"))[0].energy == -1


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        *(
            (said, True)
            for said in ("length_unit=nm", "units=atomic", "cellUnit=bohr", "positions{atomic_unit}")
        ),
        *((said, True) for said in ('units="Ha, Bohr"', "# CELL(abcABC): 9 9 9 90 90 90 Step: 0")),
        *(
            (said, False)
            for said in ("energy_unit=Ha", "units=real", "stress_unit=GPa", 'units="kcal/mol Å"')
        ),
    ],
)
def test_lengths_of_a_structure_for_a_simulation_are_in_angstrom(tmp_path, said, wrong):
    from pimlip_zoo.datasets.readers.source import check_bounded

    (tmp_path / "a.xyz").write_text(f"1\n{said}\nH 0 0 0\n", encoding="utf8")
    if not wrong:
        check_bounded(tmp_path / "a.xyz")
        return
    with pytest.raises(InputError, match=r"a\.xyz, frame 0, \S+: the header says"):
        check_bounded(tmp_path / "a.xyz")


@pytest.mark.parametrize("count", ["0_1", "1_", "1.0", "0x1"])
def test_numbers_of_atoms_are_digits(tmp_path, count):
    (tmp_path / "a.xyz").write_text(f"{count}\n{FORCES} energy=-1\n{ROW}\n")
    with pytest.raises(InputError, match="should be a number of atoms"):
        load_frames(str(tmp_path / "a.xyz"))


@pytest.mark.parametrize(
    ("key", "place"), [("CONFIG_WEIGHT", None), ("Config_Energy_Weight", 0), ("config_FORCES_weight", 1)]
)
def test_weights_are_read_in_upper_and_lower_case(tmp_path, key, place, caplog):
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES} energy=-1 {key}=0.25\n{ROW}\n")
    (frame,) = load_frames(str(tmp_path / "a.xyz"))
    assert (frame.weight if place is None else frame.label_weights[place]) == 0.25
    assert not caplog.records


@pytest.mark.parametrize(
    "key", ["config_virial_weight", "config_force_weight", "Config_Forces_Stress_Weight"]
)
def test_weights_that_are_not_known_are_said_once(tmp_path, key, caplog):
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES} energy=-1 {key}=0.25\n{ROW}\n" * 3)
    frames = load_frames(str(tmp_path / "a.xyz"))
    assert {frame.label_weights for frame in frames} == {(1.0, 1.0, 1.0)}
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"{tmp_path / 'a.xyz'}: {key} is no weight that is known, and is ignored"
    ]


def test_what_stands_in_quotes_of_an_xyz_header_is_no_key(tmp_path):
    comment = (
        f'{FORCES} energy=-1 name="energy=-2 energy = 3" note=\'pbc=T\' list="[energy=1]" url=a?energy=4'
    )
    (tmp_path / "a.xyz").write_text(f"1\n{comment}\n{ROW}\n")
    assert load_frames(str(tmp_path / "a.xyz"))[0].energy == -1


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_quote_that_is_not_closed_takes_no_longer_the_longer_its_text_is(quote):
    started = time.perf_counter()
    assert list(_keys(f"a=1 x={quote}" + f"\\{quote}" * 500_000)) == ["a", "x"]
    assert list(_keys(f"energy=1 {'{[' * 100_000} {quote}")) == ["energy"]
    assert time.perf_counter() - started < 2


def test_whole_numbers_are_forces_and_columns_behind_a_plain_xyz_are_named(tmp_path):
    (tmp_path / "a.xyz").write_text(f"1\n{FORCES.replace('forces:R', 'forces:I')}\n{ROW}\n")
    np.testing.assert_array_equal(load_frames(str(tmp_path / "a.xyz"))[0].forces, [[1, 0, 0]])
    (tmp_path / "b.xyz").write_text(f"1\n\n{ROW}\n")
    assert convert(str(tmp_path / "b.xyz"), tmp_path / "b.lmdb").not_kept == ("columns without a name",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "no frames"),
        ("two\nx\n", "line 1 should be a number of atoms"),
        ("-3\nx\n", "line 1 should be a number"),
        ("99999999999999\nx\n", "line 1 should be a number"),
        (
            header(energy=1) + "3\nenergy=1\nH 0 0 0\n",
            "frame 1: is cut off: 3 atoms are announced",
        ),
        ("0\nenergy=1\n", "frame 0: has no atoms"),
        ("1\nProperties=species:S:1:pos:R:3 energy=abc\nH 0 0 0\n", "is not a number"),
        ("1\nProperties=species:S:1:pos:R:3\nXx 0 0 0\n", "'Xx' is no element"),
        ("1\nProperties=species:S:1:pos:R:3\nH 0 zero 0\n", "frame 0, pos"),
        ("1\nProperties=species:S:1:pos:R:3\nH 0 0\n", "atom 0 has 3 columns, expected 4"),
        ("1\nProperties=species:S:1:pos:Q:3\nH 0 0 0\n", "unknown type"),
        ("1\nProperties=species:S:1\nH\n", "has no positions"),
        ('1\nProperties=species:S:1:pos:R:3 forces="1 2"\nH 0 0 0\n', "has shape"),
    ],
)
def test_an_unreadable_xyz_file_is_named_by_line_or_frame(tmp_path, text, message):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(InputError, match=message):
        load_frames(str(tmp_path / "a.xyz"))


def test_a_damaged_compressed_file_is_an_error(tmp_path):
    data = gzip.compress((header(energy=1) * 500).encode())
    (tmp_path / "a.xyz.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_frames(str(tmp_path / "a.xyz.gz"))


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_no_bytes_crash_the_xyz_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("x") / "a.xyz"
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        load_frames(str(path))


def test_sgdml_archives_say_their_units(tmp_path):
    rng = np.random.default_rng(0)
    z, R = np.array([1, 6, 8]), rng.normal(size=(4, 3, 3)) * 3
    E, F = rng.normal(size=4), rng.normal(size=(4, 3, 3))
    np.savez(tmp_path / "a.npz", z=z, R=R, E=E, F=F, e_unit="kcal/mol", r_unit="Ang", name="x")
    frames = load_frames(str(tmp_path / "a.npz"))
    assert len(frames) == 4
    np.testing.assert_allclose(frames[2].forces, F[2] * KCAL)
    assert frames[2].energy == pytest.approx(E[2] * KCAL)
    assert len(load_frames(f"{tmp_path}/a.npz@1:3")) == 2


def test_a_unit_that_is_not_the_files_own_is_refused(tmp_path):
    R = np.arange(9.0).reshape(1, 3, 3)
    np.savez(tmp_path / "a.npz", z=[1, 6, 8], R=R, E=[1.0], F=R, e_unit="eV", r_unit="Ang")
    path = str(tmp_path / "a.npz")
    assert load_frames(f"{path}?energy=eV&length=Å")[0].energy == load_frames(path)[0].energy == 1.0
    with pytest.raises(
        InputError, match=r"a\.npz, energy: the file says that its unit is eV, you say kcal/mol"
    ):
        load_frames(f"{path}?energy=kcal/mol")
    with pytest.raises(InputError, match=r"a\.npz, length: .* is Ang, you say Bohr"):
        load_frames(f"{path},{path}?length=Bohr")


@pytest.mark.parametrize("number", [0, 119, -6])
def test_a_number_that_is_no_element_is_named(tmp_path, number):
    R = np.arange(9.0).reshape(1, 3, 3)
    np.savez(tmp_path / "a.npz", z=[1, number, 8], R=R, E=[1.0], F=R, e_unit="eV", r_unit="Ang")
    with pytest.raises(InputError, match=rf"a\.npz, frame 0, species: atom 1 has atomic number {number}"):
        load_frames(str(tmp_path / "a.npz"))


def test_rmd17_archives_are_in_kcal_per_mol(tmp_path):
    R = np.arange(18.0).reshape(2, 3, 3)
    np.savez(
        tmp_path / "a.npz",
        nuclear_charges=[1, 6, 8],
        coords=R,
        energies=[1.0, 2.0],
        forces=R,
        old_indices=[0, 1],
        old_energies=[5.0, 5.0],
        old_forces=R,
    )
    frame = load_frames(str(tmp_path / "a.npz"))[1]
    assert frame.energy == pytest.approx(2 * KCAL)
    np.testing.assert_allclose(frame.forces, R[1] * KCAL)


def test_an_archive_without_units_asks_for_them(tmp_path):
    np.savez(tmp_path / "a.npz", z=[1, 1], R=np.arange(6.0).reshape(1, 2, 3), E=[1.0])
    with pytest.raises(InputError, match="does not say its unit of energy"):
        load_frames(str(tmp_path / "a.npz"))
    frame = load_frames(f"{tmp_path}/a.npz?energy=Hartree&length=Bohr")[0]
    assert frame.energy == pytest.approx(units.Hartree)
    assert frame.positions[1, 2] == pytest.approx(5 * units.Bohr)


def test_an_archive_of_python_objects_is_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.array([{"a": 1}], dtype=object), R=np.zeros((1, 1, 3)), E=[0.0])
    with pytest.raises(InputError, match="could run any code"):
        load_frames(f"{tmp_path}/a.npz?energy=eV&length=Å")


def test_wrong_shapes_in_an_archive_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", z=[1, 1], R=np.zeros((1, 3, 3)), E=[0.0])
    with pytest.raises(InputError, match=r"expected \(frames, 2, 3\)"):
        load_frames(f"{tmp_path}/a.npz?energy=eV&length=Å")
    np.savez(tmp_path / "a.npz", z=[1, 1], R=np.zeros((3, 2, 3)), E=[0.0])
    with pytest.raises(InputError, match="1 energies for 3 frames"):
        load_frames(f"{tmp_path}/a.npz?energy=eV&length=Å")


@pytest.fixture(scope="module")
def vasp():
    path = Path(__file__).parents[2] / "benchmarks" / "vasp.py"
    spec = importlib.util.spec_from_file_location("vasp", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["vasprun.xml", "OUTCAR"])
def test_outputs_of_vasp_keep_their_units_signs_and_both_energies(tmp_path, vasp, name):
    rng = np.random.default_rng(0)
    numbers, cell = np.array([6, 8, 1, 6, 1]), np.diag([6.0, 7.0, 8.0]) + 0.3 * rng.normal(size=(3, 3))
    R, energies, F = rng.random((3, 5, 3)) @ cell, rng.normal(size=3), rng.normal(size=(3, 5, 3))
    stress = 0.01 * rng.normal(size=(3, 3, 3))
    stress += stress.transpose(0, 2, 1)
    write = vasp.write_outcar if name == "OUTCAR" else vasp.write_vasprun
    write(tmp_path / name, numbers, cell, R, energies, F, stress, entropy=0.25)
    read, order = load_frames(str(tmp_path / name)), np.argsort(numbers, kind="stable")
    np.testing.assert_array_equal([f.numbers for f in read], [numbers[order]] * 3)
    np.testing.assert_allclose([f.positions for f in read], R[:, order], atol=1e-7)
    np.testing.assert_allclose([f.forces for f in read], F[:, order], atol=1e-7)
    np.testing.assert_allclose([f.stress for f in read], stress, atol=1e-7)
    np.testing.assert_allclose([f.energy for f in read], energies, atol=1e-7)
    assert read[0].pbc.all()
    free = load_frames(f"{tmp_path / name}?energy_key=free_energy@1:2")[0]
    assert free.energy == pytest.approx(energies[1] - 0.25, abs=1e-7)


@pytest.fixture
def h5(tmp_path):
    h5py = pytest.importorskip("h5py")
    return lambda name: h5py.File(tmp_path / name, "w")


def test_ani1x_files_have_hartree_and_nan_for_missing(tmp_path, h5):
    R = np.arange(18.0).reshape(2, 3, 3)
    with h5("a.h5") as file:
        group = file.create_group("C1H2")
        group["atomic_numbers"] = np.array([6, 1, 1], dtype=np.uint8)
        group["coordinates"] = R.astype(np.float32)
        group["wb97x_dz.energy"] = [-1.0, np.nan]
        group["wb97x_dz.forces"] = R
        group["ccsd(t)_cbs.energy"] = [np.nan, -2.0]
    a, b = load_frames(str(tmp_path / "a.h5"))
    assert a.energy == pytest.approx(-units.Hartree)
    assert b.energy is None
    np.testing.assert_allclose(b.forces, R[1] * units.Hartree)
    assert a.info["group"] == "C1H2"
    c = load_frames(f"{tmp_path}/a.h5?energy_key=ccsd(t)_cbs.energy@1:")[0]
    assert c.energy == pytest.approx(-2 * units.Hartree)
    assert c.forces is None, "forces of another level of theory must not come along"


@pytest.mark.parametrize("soft", [True, False])
def test_groups_that_share_data_sets_by_links_are_read_whole(tmp_path, h5, soft):
    import h5py

    _methane(h5, "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        shared = file.create_group("n")
        for name in ("atomic_numbers", "coordinates"):
            shared[name] = h5py.SoftLink(f"/m/{name}") if soft else file[f"m/{name}"]
        shared["energy"] = file["m/energy"][()] + 1.0
    frames = load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")
    assert len(frames) == 8
    for first, second in zip(frames[:4], frames[4:], strict=True):
        np.testing.assert_array_equal(first.positions, second.positions)
        assert second.energy == pytest.approx(first.energy + 1.0, abs=1e-12)
    _methane(h5, "b.h5")
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["n"] = h5py.ExternalLink("a.h5", "/m")
    with pytest.raises(InputError, match=r"b\.h5, n: is a link to another file, which is not read"):
        load_frames(f"{tmp_path}/b.h5?energy=eV&length=Å")


@pytest.mark.parametrize("attribute", ["units", "unit", "Units", "Unit"])
def test_a_unit_is_seen_by_each_usual_name_of_its_attribute(tmp_path, h5, attribute):
    import h5py

    _methane(h5, "a.h5", forces=None)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["m/energy"].attrs[attribute] = "Hartree"
    assert len(load_frames(f"{tmp_path}/a.h5?energy=Hartree&length=Å")) == 4
    with pytest.raises(InputError, match="says that its unit is Hartree"):
        load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")


def test_spice_files_have_bohr_and_gradients(tmp_path, h5):
    R = np.arange(12.0).reshape(2, 2, 3)
    with h5("a.hdf5") as file:
        group = file.create_group("water")
        group["atomic_numbers"] = [8, 1]
        group["conformations"] = R
        group["dft_total_energy"] = [-1.0, -2.0]
        group["dft_total_gradient"] = R
        group["subset"] = [b"SPICE Dipeptides"]
    frame = load_frames(str(tmp_path / "a.hdf5"))[1]
    np.testing.assert_allclose(frame.positions, R[1] * units.Bohr)
    np.testing.assert_allclose(frame.forces, -R[1] * units.Hartree / units.Bohr)
    assert frame.info == {"group": "water", "subset": "SPICE Dipeptides"}


def test_strings_chunks_and_other_byte_orders_are_read_as_they_are(tmp_path, h5):
    rng = np.random.default_rng(0)
    R = rng.normal(size=(7, 3, 3))
    with h5("a.hdf5") as file:
        group = file.create_group("water")
        group["atomic_numbers"] = np.array([8, 1, 1], dtype=">i2")
        group.create_dataset("conformations", data=R.astype(">f4"), chunks=(2, 3, 3), compression="gzip")
        group["dft_total_energy"] = np.arange(7.0).reshape(7, 1)
        group["dft_total_gradient"] = R.astype(np.float16)
        group["subset"] = ["SPICE Wasser 水"]  # text of variable length, as published
        group["smiles"] = "O"
    read = load_frames(str(tmp_path / "a.hdf5"))
    np.testing.assert_array_equal([f.numbers for f in read], [[8, 1, 1]] * 7)
    np.testing.assert_allclose(
        [f.positions for f in read], R.astype(np.float32).astype(float) * units.Bohr, rtol=1e-15
    )
    np.testing.assert_allclose([f.energy for f in read], np.arange(7) * units.Hartree, rtol=1e-15)
    gradients = R.astype(np.float16).astype(float) * (units.Hartree / units.Bohr)
    np.testing.assert_allclose([f.forces for f in read], -gradients, rtol=1e-15)
    assert read[6].info == {"group": "water", "subset": "SPICE Wasser 水", "smiles": "O"}


def test_large_groups_are_read_in_parts_and_windows_of_them(tmp_path, h5):
    count = 2_500
    R = np.random.default_rng(1).normal(size=(count, 2, 3))
    with h5("a.h5") as file:
        group = file.create_group("mixed")
        group["species"] = np.tile([[8, 1], [6, 1]], (count // 2, 1))
        group["coordinates"] = R
        group["energies"] = np.arange(count, dtype=np.float32)
    read = load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å@1000:2100:7")
    chosen = range(1000, 2100, 7)
    assert [f.energy for f in read] == list(chosen)
    np.testing.assert_array_equal([f.positions for f in read], R[chosen])
    np.testing.assert_array_equal([f.numbers for f in read], [[6, 1] if k % 2 else [8, 1] for k in chosen])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("conformations", np.zeros((2, 4, 3)), r"conformations: has shape \(2, 4, 3\)"),
        ("conformations", np.zeros((2, 3)), r"conformations: has shape \(2, 3\)"),
        ("dft_total_energy", np.zeros(3), r"dft_total_energy: has shape \(3,\)"),
        ("dft_total_energy", "none", r"dft_total_energy: has shape \(\)"),
        ("atomic_numbers", np.zeros((3, 3), int), r"atomic_numbers: has shape \(3, 3\)"),
        ("atomic_numbers", np.zeros(0, int), r"atomic_numbers: has shape \(0,\)"),
        ("atomic_numbers", [b"H", b"Q", b"H"], "'Q' is no element"),
        ("dft_total_gradient", np.array([[[b"x"] * 3] * 3] * 2), "holds no numbers but"),
        ("atomic_numbers", None, "has no atomic numbers"),
    ],
)
def test_data_sets_of_another_shape_are_named(tmp_path, h5, key, value, message):
    data = {
        "atomic_numbers": [8, 1, 1],
        "conformations": np.arange(18.0).reshape(2, 3, 3),
        "dft_total_energy": [-1.0, -2.0],
        "dft_total_gradient": np.zeros((2, 3, 3)),
    }
    with h5("a.hdf5") as file:
        group = file.create_group("water")
        for name, content in {**data, key: value}.items():
            if content is not None:
                group[name] = content
    with pytest.raises(InputError, match=message) as caught:
        load_frames(str(tmp_path / "a.hdf5"))
    assert str(caught.value).count("a.hdf5") == 1


def test_other_hdf5_layouts_ask_for_units_and_nested_groups_are_found(tmp_path, h5):
    with h5("a.h5") as file:
        for name in ("x/one", "x/two"):
            group = file.create_group(name)
            group["species"] = [b"O", b"H"]
            group["coordinates"] = np.arange(6.0).reshape(1, 2, 3)
            group["energies"] = [1.0]
    with pytest.raises(InputError, match="unit of energy"):
        load_frames(str(tmp_path / "a.h5"))
    frames = load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")
    assert [frame.info["group"] for frame in frames] == ["x/one", "x/two"]
    np.testing.assert_array_equal(frames[0].numbers, [8, 1])


def test_a_file_that_is_no_hdf5_is_an_error(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"not hdf5")
    with pytest.raises(InputError, match="cannot be opened"):
        load_frames(str(tmp_path / "a.h5"))


def deepmd(folder, frames, type_map="O H"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type.raw").write_text("0\n1\n1\n")
    if type_map:
        (folder / "type_map.raw").write_text(type_map)
    part = folder / "set.000"
    part.mkdir()
    np.save(part / "coord.npy", np.array([f.positions.reshape(-1) for f in frames]))
    np.save(part / "box.npy", np.array([f.cell.reshape(-1) for f in frames]))
    np.save(part / "energy.npy", np.array([f.energy for f in frames]))
    np.save(part / "force.npy", np.array([f.forces.reshape(-1) for f in frames]))
    volume = [abs(np.linalg.det(f.cell)) for f in frames]
    np.save(
        part / "virial.npy",
        np.array([-f.stress.reshape(-1) * v for f, v in zip(frames, volume, strict=True)]),
    )


def test_deepmd_folders_are_read_system_by_system(tmp_path):
    water = np.array([8, 1, 1])
    frames = [crystal(seed, 3, numbers=water) for seed in range(5)]
    deepmd(tmp_path / "systems" / "a", frames[:3])
    deepmd(tmp_path / "systems" / "b", frames[3:])
    for frame, read in zip(frames, load_frames(str(tmp_path / "systems")), strict=True):
        assert_same(frame, read, 1e-12)
    assert len(load_frames(f"{tmp_path}/systems@-3:")) == 3


def test_deepmd_types_without_names_have_to_be_named(tmp_path):
    deepmd(tmp_path / "a", [crystal(0, 3)], type_map=None)
    with pytest.raises(InputError, match=r"\?species=O\+H"):
        load_frames(str(tmp_path / "a"))
    np.testing.assert_array_equal(load_frames(f"{tmp_path}/a?species=O+H")[0].numbers, [8, 1, 1])


def half_a_copy(system, what):
    """A folder of DeePMD-kit in which something is missing, or of another shape."""
    part, lost = system / "set.000", system / "set.001"
    lost.mkdir()
    if what != "nothing in a set":
        np.save(lost / "energy.npy", np.ones(2))
    if what == "no types":
        shutil.rmtree(lost)
        shutil.copytree(part, system.parent / "b" / "set.000")
    elif what == "no atoms":
        shutil.rmtree(lost)
        (system / "type.raw").write_text("")
        np.save(part / "coord.npy", np.zeros((2, 0)))
    elif what in ("transposed", "complex", "text"):
        shutil.rmtree(lost)
        forces = np.load(part / "force.npy")
        odd = {"transposed": forces.T, "complex": forces + 1j, "text": forces.astype(str)}
        np.save(part / "force.npy", odd[what])
    elif what == "a link to nowhere":
        shutil.rmtree(lost)
        (part / "energy.npy").unlink()
        (part / "energy.npy").symlink_to("nowhere.npy")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no positions", r"set\.001: has no coord\.npy"),
        ("nothing in a set", r"set\.001: has no coord\.npy"),
        ("no types", r"b: has set\.000 and no type\.raw"),
        ("no atoms", r"type\.raw: names no atoms"),
        ("transposed", r"force\.npy: has shape \(9, 2\)"),
        ("complex", r"force\.npy: holds no numbers but complex"),
        ("text", r"force\.npy: holds no numbers but <U"),
        ("a link to nowhere", r"energy\.npy: no such file"),
    ],
)
def test_deepmd_folders_that_would_be_read_in_part_are_refused(tmp_path, what, says):
    water = np.array([8, 1, 1])
    deepmd(tmp_path / "all" / "a", [crystal(seed, 3, numbers=water) for seed in range(2)])
    half_a_copy(tmp_path / "all" / "a", what)
    with pytest.raises(InputError, match=says):
        load_frames(str(tmp_path / "all"))


def test_deepmd_systems_behind_links_are_read_and_each_of_them_once(tmp_path):
    water = np.array([8, 1, 1])
    deepmd(tmp_path / "elsewhere", [crystal(0, 3, numbers=water)])
    deepmd(tmp_path / "all" / "a", [crystal(1, 3, numbers=water)])
    (tmp_path / "all" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "a" / "up").symlink_to(tmp_path / "all")
    assert len(load_frames(str(tmp_path / "all"))) == 2


MOLECULES = {"z": [1, 1], "R": np.arange(12.0).reshape(2, 2, 3), "E": [1.0, 2.0], "F": np.zeros((2, 2, 3))}


@pytest.mark.parametrize(
    ("other", "first"),
    [("energy", "E"), ("energies", "E"), ("forces", "F"), ("coords", "R"), ("numbers", "z")],
)
def test_an_npz_archive_that_says_something_twice_is_refused_unless_it_is_the_same(tmp_path, other, first):
    path, options = tmp_path / "a.npz", "?energy=eV&length=Å"
    np.savez(path, **MOLECULES, **{other: np.array(MOLECULES[first]) + 1})
    with pytest.raises(InputError, match=rf"{other}: holds {first} and {other}, which differ"):
        load_frames(f"{path}{options}")
    if first == "E":
        assert load_frames(f"{path}{options}&energy_key={other}")[0].energy == 2.0
        assert load_frames(f"{path}{options}&energy_key=E")[0].energy == 1.0
    np.savez(path, **MOLECULES, **{other: MOLECULES[first]})
    assert load_frames(f"{path}{options}")[1].energy == 2.0


def test_an_npz_archive_with_an_entry_twice_or_transposed_forces_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{**MOLECULES, "R": np.arange(18.0).reshape(3, 2, 3), "E": [1.0] * 3})
    with pytest.raises(InputError, match="forces have shape"):
        load_frames(f"{path}?energy=eV&length=Å")
    np.savez(path, **MOLECULES)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("E.npy", archive.read("E.npy"))
    with pytest.raises(InputError, match="E: is there twice"):
        load_frames(f"{path}?energy=eV&length=Å")


def test_n2p2_files_are_read_in_the_named_units(tmp_path):
    (tmp_path / "input.data").write_text(
        "begin\ncomment hello there\nlattice 10 0 0\nlattice 0 10 0\nlattice 0 0 10\n"
        "atom 0 0 0 O 0 0 0.1 0.2 0.3\natom 0 0 2 H 0 0 -0.1 -0.2 -0.3\nenergy -1.5\ncharge 0\nend\n"
    )
    with pytest.raises(InputError, match="unit of energy"):
        load_frames(f"{tmp_path}/input.data")
    frame = load_frames(f"{tmp_path}/input.data?energy=Hartree&length=Bohr")[0]
    assert frame.energy == pytest.approx(-1.5 * units.Hartree)
    assert frame.cell[0, 0] == pytest.approx(10 * units.Bohr)
    assert frame.forces[0, 2] == pytest.approx(0.3 * units.Hartree / units.Bohr)
    assert frame.info["comment"] == "hello there"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("energy -1.5", "energy -1.5\nbegin\natom 0 0 0 O 0 0 0 0 0", "before line 8 has no end"),
        (" -0.1 -0.2 -0.3", "", "atom 1 has no forces"),
        ("energy -1.5", "energy -1.5\nenergy -2.5", "2 lines `energy`"),
        ("energy", "enrgy", "begins with 'enrgy'"),
    ],
)
def test_n2p2_files_that_would_be_read_in_part_are_refused(tmp_path, old, new, says):
    text = (
        "begin\nlattice 10 0 0\nlattice 0 10 0\nlattice 0 0 10\n"
        "atom 0 0 0 O 0 0 0.1 0.2 0.3\natom 0 0 2 H 0 0 -0.1 -0.2 -0.3\nenergy -1.5\ncharge 0\nend\n"
    )
    (tmp_path / "input.data").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=says):
        load_frames(f"{tmp_path}/input.data?energy=eV&length=Å")


@pytest.mark.parametrize("name", ["cell", "lattice", "pbc"])
def test_a_cell_in_an_npz_archive_is_refused(tmp_path, name):
    arrays = {"z": [1, 1], "R": np.array([[[0.0, 0, 0], [0, 0, 1]]]), "E": [1.0]}
    np.savez(tmp_path / "a.npz", **arrays, **{name: np.eye(3)})
    with pytest.raises(InputError, match="periodic"):
        load_frames(f"{tmp_path}/a.npz?energy=eV&length=Å")


def test_schnetpack_databases_say_their_units(tmp_path):
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        database.metadata = {
            "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Ang"},
            "_distance_unit": "Ang",
        }
        for energy in (1.0, 2.0):
            database.write(Atoms("H"), data={"energy": np.array([energy]), "forces": np.ones((1, 3))})
    frame = load_frames(f"{tmp_path}/a.db@1")[0]
    assert frame.energy == pytest.approx(2 * KCAL)
    np.testing.assert_allclose(frame.forces, np.full((1, 3), KCAL))


@pytest.mark.parametrize(
    ("said", "keys", "options", "energy", "force"),
    [
        (
            {"energy_U0": "Ha", "zpve": "Ha"},
            ("energy_U0", "forces"),
            "?energy_key=energy_U0",
            units.Hartree,
            units.Hartree,
        ),
        (
            {"Energy": "Ha", "Forces": "Ha/Bohr"},
            ("Energy", "Forces"),
            "",
            units.Hartree,
            units.Hartree / units.Bohr,
        ),
        (
            {"Energy": "Ha", "Forces": "eV/Ang"},
            ("Energy", "Forces"),
            "?energy_key=Energy&forces_key=Forces",
            units.Hartree,
            1.0,
        ),
        (
            {"REF_energy": "kcal/mol", "force": "kJ/mol/Ang"},
            ("REF_energy", "force"),
            "",
            KCAL,
            units.kJ / units.mol,
        ),
        ({"total_energy": None}, ("total_energy", "forces"), "?energy=Ha&forces=eV/Ang", units.Hartree, 1.0),
    ],
)
def test_schnetpack_databases_say_the_units_of_any_key(tmp_path, said, keys, options, energy, force):
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        database.metadata = {"_property_unit_dict": said, "_distance_unit": "Ang"}
        database.write(Atoms("H"), data={keys[0]: np.array([1.0]), keys[1]: np.ones((1, 3))})
    frame = load_frames(f"{tmp_path}/a.db{options}")[0]
    assert frame.energy == pytest.approx(energy)
    np.testing.assert_allclose(frame.forces, np.full((1, 3), force))


def _qm9(path):
    """Properties as SchNetPack has them of QM9: no energy by a usual name, and a free energy of thermodynamics."""
    from ase.db import connect

    said = {"energy_U0": "Ha", "enthalpy_H": "Ha", "free_energy": "Ha", "energy": "Ha", "forces": "eV/Ang"}
    with connect(path) as database:
        database.metadata = {"_property_unit_dict": said, "_distance_unit": "Ang"}
        database.write(
            Atoms("H"),
            data={"energy_U0": np.array([-1.0]), "free_energy": np.array([-2.0]), "forces": np.ones((1, 3))},
        )
    return path


def test_the_free_energy_of_thermodynamics_is_no_label(tmp_path, caplog):
    path = _qm9(tmp_path / "a.db")
    assert load_frames(str(path))[0].energy is None
    assert "energy_U0 is no name of it" in caplog.text
    assert load_frames(f"{path}?energy_key=free_energy")[0].energy == pytest.approx(-2 * units.Hartree)
    assert load_frames(f"{path}?energy_key=energy_U0")[0].energy == pytest.approx(-units.Hartree)


def test_a_named_energy_does_not_change_the_unit_of_forces(tmp_path):
    path = _qm9(tmp_path / "a.db")
    with pytest.raises(InputError, match=r"forces are in eV/Ang, .*&forces=eV/Ang"):
        load_frames(f"{path}?energy_key=energy_U0&energy=Ha")
    (frame,) = load_frames(f"{path}?energy_key=energy_U0&energy=Ha&forces=eV/Ang")
    np.testing.assert_array_equal(frame.forces, np.ones((1, 3)))


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3)])
def test_a_database_says_its_unit_of_stress(tmp_path, shape):
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        database.metadata = {
            "_property_unit_dict": {"energy": "eV", "stress": "GPa"},
            "_distance_unit": "Ang",
        }
        database.write(bulk("Cu"), data={"energy": np.array([1.0]), "stress": 2.0 * np.eye(3).reshape(shape)})
    (frame,) = load_frames(str(tmp_path / "a.db"))
    np.testing.assert_allclose(frame.stress, 2.0 * units.GPa * np.eye(3))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"energy": None}, r"a\.db, energy: its metadata name the unit None"),
        ({"energy": ["Ha"]}, r"a\.db, energy: its metadata name the unit \['Ha'\]"),
        ({"energy": "eV", "total_energy": "Ha"}, "say that energy is in eV, total_energy is in Ha"),
        ({"energy": "eV", "virial": "Ha"}, "virial: its metadata say that it is in Ha"),
        (["energy", "eV"], "names no units by property"),
    ],
)
def test_units_of_a_database_that_cannot_be_right_are_refused(tmp_path, metadata, message):
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        database.metadata = {"_property_unit_dict": metadata, "_distance_unit": "Ang"}
        database.write(Atoms("H"), data={"energy": np.array([1.0])})
    with pytest.raises(InputError, match=message):
        load_frames(str(tmp_path / "a.db"))


@pytest.mark.parametrize("computed", ["view", "trigger", "generated", "virtual"])
def test_a_database_in_which_rows_are_computed_is_refused_at_once(tmp_path, computed):
    """A view of a few bytes may have no end, and ASE would count its rows."""
    import sqlite3
    from contextlib import closing

    from ase.db import connect

    path = tmp_path / "a.db"
    connect(path).write(Atoms("H"))
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            {
                "view": "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i+1 FROM n) SELECT i FROM n",
                "trigger": "CREATE TRIGGER v AFTER INSERT ON keys BEGIN DELETE FROM systems; END",
                "generated": "CREATE TABLE v (a, b AS (zeroblob(900000000)))",
                "virtual": "CREATE VIRTUAL TABLE v USING fts5(a)",
            }[computed]
        )
        database.commit()
    for read in (load_frames, read_structure):
        with pytest.raises(InputError, match=r"a\.db: 'v' is no plain table"):
            read(str(path))


def _methane(h5, name, attributes=None, **changed):
    """An HDF5 file of no particular layout."""
    rng = np.random.default_rng(0)
    arrays = {
        "atomic_numbers": np.array([6, 1, 1, 1, 1]),
        "coordinates": rng.normal(size=(4, 5, 3)),
        "energy": rng.normal(size=4),
        "forces": rng.normal(size=(4, 5, 3)),
        **changed,
    }
    with h5(name) as file:
        group = file.create_group("m")
        for key, value in arrays.items():
            if value is not None:
                group[key] = value
        for key, unit in (attributes or {}).items():
            group[key].attrs["units"] = unit
    return arrays


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"forces": np.ones((4, 3, 5))}, r"m/forces: has shape \(4, 3, 5\), expected \(4, 5, 3\)"),
        ({"coordinates": np.ones((4, 3, 5))}, r"m/coordinates: has shape \(4, 3, 5\)"),
        ({"energy": np.ones(4) + 1j}, "m/energy: holds no numbers but complex128"),
        ({"forces": np.ones((4, 5, 3), bool)}, "m/forces: holds no numbers but bool"),
        ({"lattice": np.eye(3)}, "lattice: says that its atoms are periodic"),
        ({"energies": np.ones(4)}, r"holds energy and energies, which differ \(say which one: \?energy_key"),
        ({"positions": np.ones((4, 5, 3))}, "holds coordinates and positions, which differ"),
        (
            {"gradient": np.ones((4, 5, 3))},
            r"holds forces and gradient, which differ \(say which one: \?forces_key",
        ),
        ({"species": [b"C", b"H", b"H", b"H", b"O"]}, "holds atomic_numbers and species, which differ"),
        ({"attributes": {"energy": "hartree"}}, "m/energy: says that its unit is hartree"),
        ({"attributes": {"coordinates": "bohr"}}, "m/coordinates: says that its unit is bohr"),
        ({"attributes": {"forces": "hartree/bohr"}}, "m/forces: says that its unit is hartree/bohr"),
    ],
)
def test_what_an_hdf5_file_contradicts_itself_in_is_refused(tmp_path, h5, changed, message):
    _methane(h5, "a.h5", **changed)
    with pytest.raises(InputError, match=message):
        load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")


def test_what_an_hdf5_file_says_twice_in_the_same_way_is_read(tmp_path, h5):
    arrays = _methane(h5, "plain.h5")
    twice = {
        "species": [b"C", b"H", b"H", b"H", b"H"],
        "positions": arrays["coordinates"],
        "energies": arrays["energy"],
        "gradient": -arrays["forces"],
    }
    said = {"energy": "eV", "coordinates": "angstrom", "forces": "eV/angstrom"}
    _methane(h5, "a.h5", said, **twice)
    for frame, energy, forces in zip(
        load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å"), arrays["energy"], arrays["forces"], strict=True
    ):
        assert frame.energy == energy
        np.testing.assert_array_equal(frame.forces, forces)


def test_equal_data_sets_may_have_another_precision_and_missing_numbers(tmp_path, h5):
    energy = np.array([-40.0, np.nan, -40.2, -40.3])
    _methane(h5, "a.h5", energy=energy, energies=energy.astype(np.float32)[:, None])
    energies = [frame.energy for frame in load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")]
    assert energies == [-40.0, None, -40.2, -40.3]


@pytest.mark.parametrize("unit", ["a.u.", "", "Angstroms"])
def test_units_that_are_not_known_are_said_once(tmp_path, h5, caplog, unit):
    _methane(h5, "a.h5", {"energy": unit})
    assert len(load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")) == 4
    said = [record.message for record in caplog.records if "is not known" in record.message]
    assert len(said) == bool(unit)


def test_a_unit_without_a_value_is_none(tmp_path, h5):
    import h5py

    _methane(h5, "a.h5", {"energy": h5py.Empty("S4")})
    assert len(load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")) == 4


def test_spice_says_its_units_and_is_held_to_them(tmp_path, h5):
    with h5("a.hdf5") as file:
        group = file.create_group("water")
        group["atomic_numbers"] = [8, 1]
        group["conformations"] = np.arange(6.0).reshape(1, 2, 3)
        group["dft_total_energy"] = [-1.0]
        group["conformations"].attrs["units"] = "bohr"
        group["dft_total_energy"].attrs["units"] = "hartree"
    assert load_frames(str(tmp_path / "a.hdf5"))[0].energy == pytest.approx(-units.Hartree)
    with h5("b.hdf5") as file:
        group = file.create_group("water")
        group["atomic_numbers"] = [8, 1]
        group["conformations"] = np.arange(6.0).reshape(1, 2, 3)
        group["dft_total_energy"] = [-1.0]
        group["dft_total_energy"].attrs["units"] = "kJ/mol"
    with pytest.raises(InputError, match="its unit is kJ/mol"):
        load_frames(str(tmp_path / "b.hdf5"))
    named = load_frames(f"{tmp_path}/b.hdf5?energy=kJ/mol&length=Bohr")
    assert named[0].energy == pytest.approx(-units.kJ / units.mol)


def test_groups_in_groups_without_end_are_refused(tmp_path, h5):
    with h5("a.h5") as file:
        group = file
        for _ in range(200):
            group = group.create_group("a")
    with pytest.raises(InputError, match="groups in groups"):
        load_frames(f"{tmp_path}/a.h5?energy=eV&length=Å")


def test_lists_of_files_are_one_after_the_other(tmp_path):
    a = write(tmp_path / "a.extxyz", [molecule(0), molecule(1)])
    b = write(tmp_path / "b.traj", [crystal(2)])
    frames = load_frames(f"{a},{b},builtin:ethanol-gfn2/train@:3")
    assert [len(f.numbers) for f in frames] == [5, 5, 4, 9, 9, 9]


def test_coverage_counts_structures_with_each_label():
    forces = np.full((5, 3), np.nan)
    counts = coverage([molecule(), molecule(energy=None), molecule(forces=forces), crystal()])
    assert (counts.structures, counts.energy, counts.forces, counts.stress, counts.periodic) == (
        4,
        3,
        3,
        1,
        1,
    )


def test_isolated_atoms_are_told_from_crystals_of_one_atom():
    hydrogen = Frame(numbers=np.array([1]), positions=np.zeros((1, 3)), energy=-13.6)
    boxed = Frame(
        numbers=np.array([8]),
        positions=np.zeros((1, 3)),
        cell=20 * np.eye(3),
        pbc=np.ones(3, dtype=bool),
        energy=-430.0,
        info={"config_type": "IsolatedAtom"},
    )
    copper = Frame(
        numbers=np.array([29]),
        positions=np.zeros((1, 3)),
        cell=2.5 * np.eye(3),
        pbc=np.ones(3, dtype=bool),
        energy=-3.0,
    )
    frames = [hydrogen, molecule(), boxed, copper]
    assert [is_isolated_atom(frame) for frame in frames] == [True, False, True, False]
    assert isolated_atom_energies(frames) == {"H": -13.6, "O": -430.0}
    other = Frame(numbers=np.array([1]), positions=np.zeros((1, 3)), energy=-13.0)
    with pytest.raises(InputError, match="isolated H has energy -13 eV"):
        isolated_atom_energies([hydrogen, other])


@given(st.integers(0, 10_000), st.integers(2, 90))
@settings(max_examples=40, deadline=None)
def test_coinciding_atoms_are_found_through_periodic_images(seed, n):
    rng = np.random.default_rng(seed)
    cell = 9 * np.eye(3) + rng.normal(size=(3, 3))
    pbc = rng.random(3) < 0.7
    grid = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), axis=-1).reshape(-1, 3)[:n] / 5.5
    positions = (grid + 0.01 * rng.random((n, 3))) @ cell
    assert coinciding_atoms(positions, cell, pbc) is None
    i, j = rng.choice(n, 2, replace=False)
    positions[j] = positions[i] + (rng.integers(-2, 3, 3) * pbc) @ cell + 1e-5
    assert coinciding_atoms(positions, cell, pbc) == tuple(sorted((i, j)))


def aselmdb(path, frames, gone=()):
    """A file as the LMDB backend of ASE's databases lays it out: zlib-compressed JSON by number of the row."""

    def array(values):
        values = np.asarray(values)
        return {"__ndarray__": [list(values.shape), str(values.dtype), values.reshape(-1).tolist()]}

    rows = {}
    for number, frame in enumerate(frames, start=1):
        row = {
            "numbers": array(frame.numbers),
            "positions": array(frame.positions),
            "cell": array(frame.cell),
            "pbc": array(frame.pbc),
            "energy": frame.energy,
            "forces": array(frame.forces),
            "key_value_pairs": {"config_type": "a"},
            "data": {},
        }
        if frame.stress is not None:
            row["stress"] = array(frame.stress.reshape(9)[[0, 4, 8, 5, 2, 1]])
        if number not in gone:
            rows[str(number).encode()] = row
    rows |= {b"nextid": len(frames) + 1, b"deleted_ids": list(gone)}
    return _written(path, {key: json.dumps(row) for key, row in rows.items()})


def _written(path, texts):
    import lmdb

    with (
        lmdb.open(str(path), subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, text in texts.items():
            transaction.put(key, zlib.compress(text.encode()))
    return str(path)


def test_ase_databases_in_lmdb_are_read_without_their_deleted_rows(tmp_path):
    frames = [(molecule, crystal)[seed % 2](seed) for seed in range(6)]
    path = aselmdb(tmp_path / "a.aselmdb", frames, gone=[3])
    left = [frame for number, frame in enumerate(frames, start=1) if number != 3]
    for frame, read in zip(left, load_frames(path), strict=True):
        assert_same(frame, read, 1e-15)
        assert read.info == {"config_type": "a"}
    aselmdb(tmp_path / "b.aselmdb", frames)
    assert len(load_frames(str(tmp_path))) == 11
    assert len(load_frames(f"{tmp_path}@4:7")) == 3


def test_an_aselmdb_that_does_not_say_its_next_row_is_read_to_its_end(tmp_path):
    frames = [molecule(seed) for seed in range(8)]
    path = aselmdb(tmp_path / "a.aselmdb", frames, gone=[2, 3, 4])
    _without(path, b"nextid")
    for frame, read in zip([frames[0], *frames[4:]], load_frames(path), strict=True):
        assert_same(frame, read, 1e-15)
    path = aselmdb(tmp_path / "b.aselmdb", frames)
    _without(path, b"nextid")
    _written(path, {b"metadata": "{}"})
    assert len(load_frames(path)) == 8


def test_entries_of_an_aselmdb_that_are_none_of_its_rows_are_said(tmp_path, caplog):
    path = aselmdb(tmp_path / "a.aselmdb", [molecule(seed) for seed in range(4)], gone=[2])
    _written(path, {b"metadata": "{}"})
    assert len(load_frames(path)) == 3
    assert not caplog.records
    _written(path, {b"7": "{}"})
    assert len(load_frames(path)) == 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"{path}: 1 of its entries are not read: they are none of the rows 1 to 4"


def _without(path, key):
    import lmdb

    with (
        lmdb.open(path, subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        assert transaction.delete(key)


def test_a_damaged_row_of_an_lmdb_database_is_named(tmp_path):
    import lmdb

    path = aselmdb(tmp_path / "a.aselmdb", [molecule(seed) for seed in range(3)])
    with (
        lmdb.open(path, subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"2", b"not compressed")
    with pytest.raises(InputError, match=r"a\.aselmdb, frame 1: the row is unreadable"):
        load_frames(path)
    found = []
    assert len(list(read_frames(path, on_bad=found.append))) == 2
    (tmp_path / "b.aselmdb").write_bytes(b"x" * 9000)
    with pytest.raises(InputError, match="is no LMDB file"):
        load_frames(f"{tmp_path}/b.aselmdb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": {"__ndarray__": [[3], "uint8", [264, 257, 257]]}}, "an array of uint8 has numbers"),
        ({"numbers": {"__ndarray__": [[3], "int8", [8.7, 1.2, 1.9]]}}, "an array of int8 has numbers"),
        ({"forces": {"__ndarray__": [[3, 3], "int32", [0.9] * 9]}}, "an array of int32 has numbers"),
        ({"positions": {"__ndarray__": [[3, 2], "float64", [1.0] * 6]}}, r"positions: have shape \(3, 2\)"),
        ({"positions": {"__ndarray__": [[3, 4], "float64", [1.0] * 12]}}, r"positions: have shape \(3, 4\)"),
    ],
)
def test_numbers_that_an_aselmdb_row_cannot_mean_are_refused(tmp_path, change, message):
    row = {
        "numbers": {"__ndarray__": [[3], "int64", [8, 1, 1]]},
        "positions": {"__ndarray__": [[3, 3], "float64", [*map(float, range(9))]]},
        "energy": -1.0,
    }
    _written(tmp_path / "a.aselmdb", {b"1": json.dumps(row), b"nextid": "2"})
    assert load_frames(f"{tmp_path}/a.aselmdb")[0].energy == -1.0
    _written(tmp_path / "b.aselmdb", {b"1": json.dumps(row | change), b"nextid": "2"})
    with pytest.raises(InputError, match=message):
        load_frames(f"{tmp_path}/b.aselmdb")


def test_a_key_that_is_twice_in_an_aselmdb_row_is_refused(tmp_path):
    numbers = '"numbers": {"__ndarray__": [[1], "int64", [1]]}'
    row = f'{{{numbers}, "positions": [[0, 0, 0]], "energy": -1.0, "energy": -9.0}}'
    _written(tmp_path / "a.aselmdb", {b"1": row, b"nextid": "2"})
    with pytest.raises(InputError, match="'energy' is there twice"):
        load_frames(f"{tmp_path}/a.aselmdb")


@pytest.mark.parametrize(("key", "value", "row"), [("nextid", 3, 3), ("deleted_ids", [2], 2)])
def test_rows_that_an_aselmdb_file_hides_are_not_passed_over(tmp_path, key, value, row):
    import json
    import zlib

    import lmdb

    path = aselmdb(tmp_path / "a.aselmdb", [molecule(seed) for seed in range(3)])
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(key.encode(), zlib.compress(json.dumps(value).encode()))
    with pytest.raises(InputError, match=f"has a row {row} that it says is not there"):
        load_frames(str(path))


def truncated(path, length):
    """What becomes of reading a file that is cut off, in a process of its own: its exit status."""
    os.truncate(path, length)
    process = os.fork()
    if process == 0:
        try:
            load_frames(str(path))
        except InputError:
            os._exit(2)
        except BaseException:  # noqa: BLE001 - a process of a test ends here, whatever happens
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_an_aselmdb_file_that_is_cut_off_anywhere_is_refused_and_ends_no_process(tmp_path):
    whole = Path(aselmdb(tmp_path / "a.aselmdb", [molecule(seed, 60) for seed in range(30)])).read_bytes()
    copy = tmp_path / "b.aselmdb"
    for length in (1, 4095, 4096, 8192, 12_288, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        copy.unlink(missing_ok=True)
        copy.write_bytes(whole)
        assert truncated(copy, length) == 2, length


REACHED = b"----------- aborting loop because EDIFF is reached -----------\n"
NOT_REACHED = b"----------- aborting loop EDIFF was not reached (unconverged) -----------\n"


def outcar(vasp, path, ends):
    """An OUTCAR with what stands at the end of each step's SCF."""
    n = len(ends)
    rng = np.random.default_rng(1)
    R, F = rng.random((n, 3, 3)) * 4, rng.normal(size=(n, 3, 3))
    vasp.write_outcar(path, np.array([8, 1, 1]), np.eye(3) * 8, R, -rng.random(n), F, np.zeros((n, 3, 3)))
    head, *steps = re.split(rb"(?m)^(?=-+ Iteration)", path.read_bytes())
    lines = (step.split(b"\n", 1) for step in steps)
    path.write_bytes(
        head + b"".join(begin + b"\n" + end + rest for (begin, rest), end in zip(lines, ends, strict=True))
    )


@pytest.mark.parametrize(
    ("ends", "wrong"),
    [
        ([REACHED] * 4, set()),
        ([b""] * 4, set()),  # says nothing of it, as force fields do
        ([REACHED, NOT_REACHED, REACHED, NOT_REACHED], {1, 3}),
        ([NOT_REACHED] * 4, {0, 1, 2, 3}),
        ([REACHED, b"", REACHED, REACHED], {1}),  # of versions that say nothing where it fails
    ],
)
def test_steps_of_vasp_that_did_not_converge_are_refused_by_number(tmp_path, vasp, ends, wrong, monkeypatch):
    path = tmp_path / "OUTCAR"
    outcar(vasp, path, ends)
    (tmp_path / "OUTCAR.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name, chunk in (("OUTCAR", 1 << 22), ("OUTCAR", 700), ("OUTCAR.gz", 1 << 22)):
        monkeypatch.setattr(scan, "_CHUNK", chunk)
        monkeypatch.setattr(scan, "_OVERLAP", min(chunk // 2, 1024))
        found = convergence.unconverged_in(tmp_path / name)
        assert (found.steps, found.others) == (wrong, 0)
    items = dict(AseFile(str(path), ReadOptions()).read())
    assert {k for k, item in items.items() if isinstance(item, InputError)} == wrong
    if not wrong:
        assert len(load_frames(str(path))) == 4
        return
    with pytest.raises(
        InputError, match=rf"OUTCAR, frame {min(wrong)}: the SCF of this step did not conv.*--skip-bad"
    ):
        load_frames(str(path))


def test_steps_of_a_vasprun_whose_last_iteration_changed_the_energy_are_refused(tmp_path, caplog):
    def calculation(*energies, end="</calculation>\n"):
        steps = "".join(
            f'<scstep><energy><i name="e_fr_energy"> {e:.8f} </i></energy></scstep>' for e in energies
        )
        return f'<calculation>{steps}<energy><i name="e_fr_energy"> 0.0 </i></energy>{end}'

    text = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n{}{}</modeling>\n'
    # converged, not, one step alone, none (a force field), converged, and one of a run that was killed
    steps = calculation(-1.0, -1.5, -1.500001) + calculation(-1.0, -1.4) + calculation(-1.0) + calculation()
    steps += calculation(1, 1) + calculation(-1.0, -1.2, end="")
    least = '<incar><i name="EDIFF"> 0.00001000</i></incar>'
    path = tmp_path / "vasprun.xml"
    for setting, wrong in ((least, {1, 2, 5}), ("", set())):
        path.write_text(text.format(setting, steps))
        found = convergence.unconverged_in(path)
        assert found.steps == wrong
        assert found.unknown == (not setting)
    AseFile(str(path), ReadOptions())._unconverged()
    assert "does not say its EDIFF" in caplog.text


def test_steps_behind_the_forces_of_a_vasprun_are_of_the_response_and_not_of_its_scf(tmp_path):
    def steps(*energies):
        return "".join(
            f'<scstep><energy><i name="e_fr_energy"> {e:.8f} </i></energy></scstep>' for e in energies
        )

    response = f'<varray name="forces" ></varray>{steps(-30.1, -30.2)}</calculation>\n'
    path = tmp_path / "vasprun.xml"
    path.write_text(
        '<modeling>\n<incar><i name="EDIFF"> 0.00001000</i></incar>\n'
        f"<calculation>{steps(-1.0, -1.5)}{response}<calculation>{steps(-1.0, -1.5, -1.500001)}{response}</modeling>"
    )
    assert convergence.unconverged_in(path).steps == {0}
    check_converged(path.read_bytes())


def test_what_other_programs_say_is_said_once_for_the_file(tmp_path, caplog, monkeypatch):
    path = tmp_path / "run.out"
    path.write_text(
        "Invoking FHI-aims ...\nBegin self-consistency loop\nSELF-CONSISTENCY CYCLE DID NOT CONVERGE\n"
    )
    monkeypatch.setattr(AseFile, "_iterate", lambda _: iter([Atoms("H"), Atoms("H")]))
    assert len(list(AseFile(str(path), ReadOptions()).read())) == 2
    assert caplog.text.count("1 SCFs of this output of FHI-aims did not converge") == 1
    path.write_text("nothing of a program that is known")
    assert convergence.unconverged_in(path) is None
