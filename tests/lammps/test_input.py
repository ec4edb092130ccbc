"""Input scripts and data files: axes, open directions, elements, ensembles."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian, FixCom, FixScaled
from toys import SPECIES, geometries, potential_of, predict, relative
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.deploy.lammps.input import MDSettings, in_lammps_axes, write_data, write_run
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.errors import InputError
from pimlip_zoo.written import parse_pressure


def test_a_constraint_without_single_atoms_is_refused(tmp_path):
    atoms = molecule("H2O")
    atoms.constraints = [FixCom()]
    with pytest.raises(InputError, match="its constraint FixCom cannot be kept here"):
        write_run(tmp_path, atoms, model="a.pimlip", plugin="a.so", species=SPECIES)


@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ("still.extxyz", ["--pressure", "1"], "--pressure: nvt has none"),
        ("still.extxyz", ["--pressure", "0", "--ensemble", "nve"], "--pressure: nve has none"),
        ("moving.extxyz", ["--seed", "7"], "--seed: velocities are those in the file"),
        ("spot.extxyz", [], "atoms 0 and 1 are on one spot"),
    ],
)
def test_options_without_effect_and_atoms_on_one_spot_are_refused(file, options, says, tmp_path):
    atoms = molecule("H2O")
    ase.io.write(tmp_path / "still.extxyz", atoms)
    atoms.set_velocities(np.full((3, 3), 0.01))
    ase.io.write(tmp_path / "moving.extxyz", atoms)
    atoms.positions[1] = atoms.positions[0]
    ase.io.write(tmp_path / "spot.extxyz", atoms)
    command = ["lammps", "input", "a.pimlip", "--structure", tmp_path / file, "-o", tmp_path / "md", *options]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert isinstance(result.exception, InputError)
    assert says in str(result.exception)
    assert not (tmp_path / "md").exists()


@pytest.mark.parametrize(
    ("given", "bar", "says"),
    [
        ("1", "1", "1 bar (0.0001 GPa)"),
        ("1GPa", "10000", "10000 bar (1 GPa)"),
        ("-2 kbar", "-2000", "-2000 bar (-0.2 GPa)"),
        ("1atm", "1.01325", "1.01325 bar (0.000101325 GPa)"),
    ],
)
def test_a_pressure_is_in_bar_or_in_its_own_unit_and_is_said_in_bar_and_gpa(
    given, bar, says, tmp_path, monkeypatch
):
    monkeypatch.setattr("pimlip_zoo.cli.lammps._plugin", lambda model: tmp_path / "plugin.so")
    monkeypatch.setattr("pimlip_zoo.deploy.metadata.read_metadata", lambda path: {"type_names": "H O"})
    (tmp_path / "a.pimlip").touch()
    water = molecule("H2O", vacuum=4.0, pbc=True)
    ase.io.write(tmp_path / "water.extxyz", water)
    command = ["lammps", "input", tmp_path / "a.pimlip", "--structure", tmp_path / "water.extxyz"]
    command += ["-o", tmp_path / "md", "--ensemble", "npt", "--pressure", given]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    assert f"NPT at 300 K and {says}" in result.output
    assert f" iso {bar} {bar} " in (tmp_path / "md" / "in.lammps").read_text()


@pytest.mark.parametrize("given", ["", "GPa", "1mbar", "1 GPa bar", "one"])
def test_what_is_no_pressure_is_refused(given, tmp_path):
    for unit in ("bar", "GPa"):
        with pytest.raises(InputError, match=rf"--pressure: .* is no pressure \(a number of {unit}, or 1bar"):
            parse_pressure(given, unit)


@pytest.mark.parametrize(
    ("ensemble", "says"), [("nvt", "thermostat takes them to 400 K"), ("nve", "no temperature is set")]
)
def test_the_script_says_that_velocities_of_the_structure_win_over_the_temperature(ensemble, says, tmp_path):
    atoms = molecule("H2O")
    atoms.set_velocities(np.full((3, 3), 0.01))
    settings = MDSettings(ensemble=ensemble, temperature=400)
    script = write_run(tmp_path, atoms, model="a.pimlip", plugin="a.so", species=SPECIES, settings=settings)
    text = script.read_text()
    assert f"# velocities come with the structure; {'the ' if ensemble == 'nvt' else ''}{says}" in text
    assert "velocity " not in text


def test_a_number_that_is_too_low_is_refused_with_the_lowest():
    with pytest.raises(InputError, match=r"every: 0 is too low \(give 1 or more\)"):
        MDSettings(every=0)


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_a_bath_of_no_temperature_which_lammps_refuses_is_refused(ensemble):
    assert MDSettings(ensemble="nve", temperature=0.0).temperature == 0
    with pytest.raises(InputError, match="temperature: LAMMPS has no bath of 0 K"):
        MDSettings(ensemble=ensemble, temperature=0.0)


@pytest.mark.parametrize("index", [3, -4, [0, 100]])
def test_a_constraint_on_atoms_that_are_not_there_is_refused(index, tmp_path):
    atoms = molecule("H2O")
    for constraint in (FixAtoms(index), FixCartesian(index, (True, False, False))):
        atoms.constraints = [constraint]
        with pytest.raises(InputError, match="a constraint names atoms that are not there: there are 3"):
            write_run(tmp_path, atoms, model="a.pimlip", plugin="a.so", species=SPECIES)


@pytest.mark.parametrize("periodic", [(1, 1, 1), (0, 0, 0), (1, 0, 1), (0, 1, 0)])
def test_turning_into_lammps_axes_changes_no_energy(periodic):
    generator = np.random.default_rng(1)
    cell = np.array([[0.5, 4.0, 0.3], [5.0, 0.2, -0.4], [0.1, 0.6, 6.0]])  # left-handed
    atoms = Atoms("HCOHCO", positions=generator.uniform(0, 4, (6, 3)), cell=cell, pbc=periodic)
    turned = in_lammps_axes(atoms)
    assert np.linalg.det(turned.cell.array) > 0
    assert np.allclose(np.triu(turned.cell.array, 1), 0.0, atol=1e-12)
    potential = potential_of("messages2")
    assert relative(predict(potential, turned)[0], predict(potential, atoms)[0]) < 1e-10


def test_atoms_lie_inside_of_open_directions():
    for atoms in (molecule("CH3CH2OH"), fcc111("Cu", (2, 2, 3), a=3.6, vacuum=None)):
        placed = in_lammps_axes(atoms)
        scaled = placed.get_scaled_positions(wrap=False)[:, ~placed.pbc]
        assert scaled.min() > 0.0
        assert scaled.max() < 1.0


def test_structures_that_lammps_cannot_hold():
    with pytest.raises(InputError, match="no atoms"):
        in_lammps_axes(Atoms())
    with pytest.raises(InputError, match="coplanar"):
        in_lammps_axes(Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 3]], pbc=True))


def test_unknown_elements_and_settings_are_named(tmp_path):
    with pytest.raises(InputError, match="does not know Cu"):
        write_data(tmp_path / "x.data", bulk("Cu", cubic=True), SPECIES)
    with pytest.raises(InputError, match="npt needs a periodic direction"):
        write_run(
            tmp_path,
            molecule("H2O"),
            model="m.pth",
            plugin="p.so",
            species=SPECIES,
            settings=MDSettings(ensemble="npt"),
        )
    for wrong in ({"ensemble": "nph"}, {"steps": -1}, {"timestep": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(InputError):
            MDSettings(**wrong)


@pytest.mark.parametrize(
    ("settings", "every"),
    [({"steps": 50}, 5), ({"steps": 3}, 1), ({"steps": 0}, 1), ({"steps": 10_000}, 100), ({"every": 7}, 7)],
)
def test_a_short_run_prints_lines_between_its_ends(settings, every, tmp_path):
    script = write_run(
        tmp_path,
        molecule("H2O"),
        model="m.pth",
        plugin="p.so",
        species=SPECIES,
        settings=MDSettings(**settings),
    )
    lines = script.read_text().splitlines()
    assert f"thermo          {every}" in lines
    assert any(line.startswith(f"dump            trajectory all custom {every} ") for line in lines)


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
@pytest.mark.parametrize("geometry", ["a slab", "a skewed triclinic cell"])
def test_written_scripts_run(ensemble, geometry, tmp_path, plugin, exported):
    script = write_run(
        tmp_path,
        geometries()[geometry],
        model=exported("pairs"),
        plugin=plugin,
        species=SPECIES,
        settings=MDSettings(ensemble=ensemble, steps=5, every=1),
    )
    assert "Loop time" in run_lammps(script)
    assert (tmp_path / "trajectory.dump").read_text().count("ITEM: TIMESTEP") == 6


def simulated(script):
    """First and last frame of a written run, in the order of the atoms, and the table of the log."""
    text = run_lammps(script)
    table = text[text.index("   Step") : text.index("Loop time")].splitlines()[1:]
    frames = (script.parent / "trajectory.dump").read_text().split("ITEM: TIMESTEP")[1:]
    rows = [frame.split("ITEM: ATOMS ")[1].splitlines() for frame in (frames[0], frames[-1])]
    names = rows[0][0].split()
    values = [np.array([[float(w) for w in line.split()[2:]] for line in part[1:]]) for part in rows]
    return names[2:], *values, np.array([[float(w) for w in line.split()] for line in table])


@pytest.mark.parametrize("has_velocities", [False, True])
@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_what_constraints_hold_does_not_move(ensemble, has_velocities, tmp_path, plugin, exported):
    atoms = geometries()["a bulk crystal"] * (1, 1, 2)
    held = np.r_[0:7, 12, 20:23]
    along = [30, 33]
    if has_velocities:
        atoms.set_velocities(np.full((len(atoms), 3), 0.01))
    atoms.set_constraint([FixAtoms(held), FixCartesian(along, mask=(True, False, True))])
    settings = MDSettings(ensemble=ensemble, steps=20, every=10, temperature=500)
    script = write_run(
        tmp_path, atoms, model=exported("nequip"), plugin=plugin, species=SPECIES, settings=settings
    )
    names, first, last, table = simulated(script)
    at = names.index("x")
    moved = np.abs(last - first)[:, at : at + 3]
    assert moved[held].max() == 0.0
    assert moved[along][:, [0, 2]].max() == 0.0
    free = np.ones(len(atoms), dtype=bool)
    free[held] = free[along] = False
    assert moved[along, 1].min() > 1e-4
    assert moved[free].min(axis=1).max() > 1e-4
    # The temperature is that of what moves.
    v = names.index("vx")
    kinetic = 0.5 * 1.0364269e-4 * float((atoms.get_masses()[:, None] * last[:, v : v + 3] ** 2).sum())
    freedoms = 3 * (len(atoms) - len(held)) - 2 * len(along)
    assert table[-1, 2] == pytest.approx(2 * kinetic / (freedoms * 8.617343e-5), rel=1e-4)
    if not has_velocities:
        assert table[0, 2] == pytest.approx(500, rel=1e-6)


def test_atoms_that_are_held_are_turned_with_the_others():
    atoms = Atoms(
        "HCO", positions=[[0, 0, 0], [1, 0.2, 0], [0, 1.5, 1]], cell=[[0, 5, 0], [0, 0, 5], [5, 0, 0]]
    )
    atoms.pbc = True
    loose = in_lammps_axes(atoms)
    atoms.set_constraint(FixAtoms([0, 2]))
    turned = in_lammps_axes(atoms)
    assert np.array_equal(turned.positions, loose.positions)
    assert np.abs(turned.positions - atoms.positions).max() > 0.1
    assert turned.constraints[0].index.tolist() == [0, 2]
    atoms.set_constraint(FixCartesian([1], mask=(True, False, False)))
    with pytest.raises(
        InputError, match="single coordinates of atom 1 are held, and LAMMPS needs the cell turned"
    ):
        in_lammps_axes(atoms)


@pytest.mark.parametrize(
    ("constraint", "ensemble", "reason"),
    [
        (FixBondLengths([[0, 1]]), "nvt", "FixBondLengths cannot be kept"),
        (FixScaled([0], mask=(True, False, False)), "nvt", "FixScaled cannot be kept"),
        (FixAtoms([0]), "npt", "NPT cannot hold atoms fixed"),
        (FixAtoms(range(48)), "nvt", "all atoms are held fixed"),
    ],
)
def test_constraints_that_cannot_be_kept_are_refused(constraint, ensemble, reason, tmp_path):
    atoms = geometries()["a bulk crystal"].copy()
    atoms.set_constraint(constraint)
    with pytest.raises(InputError, match=reason):
        write_run(
            tmp_path / "run",
            atoms,
            model="m.pimlip",
            plugin="p.so",
            species=SPECIES,
            settings=MDSettings(ensemble=ensemble),
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_isotopes_and_charges_are_kept(tmp_path, plugin, exported):
    atoms = molecule("CH3CH2OH")
    masses = atoms.get_masses()
    deuterium = [k for k, symbol in enumerate(atoms.symbols) if symbol == "H"][1:3]
    masses[deuterium] = 2.014
    atoms.set_masses(masses)
    charges = np.linspace(-0.4, 0.4, len(atoms))
    atoms.set_initial_charges(charges)
    atoms.set_velocities(np.random.default_rng(2).normal(size=(len(atoms), 3)) * 0.02)
    settings = MDSettings(ensemble="nve", steps=0, every=1)
    script = write_run(
        tmp_path, atoms, model=exported("nequip"), plugin=plugin, species=SPECIES, settings=settings
    )
    names, first, _, table = simulated(script)
    assert table[0, 4] == pytest.approx(atoms.get_kinetic_energy(), rel=1e-5)
    assert table[0, 3] == pytest.approx(predict(potential_of("nequip"), atoms)[0], rel=1e-5)
    assert np.allclose(first[:, names.index("q")], charges, atol=1e-6)


def test_what_lammps_has_no_place_for_is_said(tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.set_tags(range(len(atoms)))
    atoms.set_array("site", np.array(["a"] * len(atoms)))
    script = write_run(tmp_path, atoms, model="m.pimlip", plugin="p.so", species=SPECIES)
    assert "# LAMMPS has no place for what else the structure has: site, tags\n" in script.read_text()


def test_types_of_another_lammps_run_are_not_taken_over(tmp_path):
    # ASE keeps the types of a data file that it read, and writes them again: elements of another order.
    atoms = molecule("CH3CH2OH")
    atoms.set_array("type", np.array([{"C": 1, "H": 2, "O": 3}[s] for s in atoms.symbols]))
    types = write_data(tmp_path / "x.data", in_lammps_axes(atoms), SPECIES)
    assert [types.elements[k - 1] for k in types.of_atom] == list(atoms.symbols)
    rows = (tmp_path / "x.data").read_text().split("Atoms # atomic")[1].split("\n")[2:]
    assert [int(row.split()[1]) for row in rows if row] == list(types.of_atom)


def test_velocities_of_the_structure_are_kept(tmp_path, plugin, exported):
    atoms = geometries()["a skewed triclinic cell"]
    atoms.set_velocities(np.random.default_rng(2).normal(size=(len(atoms), 3)) * 0.02)
    settings = MDSettings(ensemble="nve", steps=0, every=1)
    script = write_run(
        tmp_path, atoms, model=exported("pairs"), plugin=plugin, species=SPECIES, settings=settings
    )
    text = run_lammps(script)
    row = text[text.index("   Step") :].splitlines()[1].split()
    assert float(row[4]) == pytest.approx(atoms.get_kinetic_energy(), rel=1e-5)
