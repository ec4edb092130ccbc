"""Input scripts and data files: axes, open directions, elements, ensembles."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from toys import SPECIES, geometries, potential_of, predict, relative

from pimlip_zoo.deploy.lammps.input import MDSettings, in_lammps_axes, write_data, write_run
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.errors import InputError


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
