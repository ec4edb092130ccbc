"""Molecular dynamics in LAMMPS: energy is conserved, ranks do not matter, runs go on from restarts."""

from __future__ import annotations

import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from toys import SPECIES, geometries, potential_of, predict

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.deploy.lammps.check import BAR, single_points
from pimlip_zoo.deploy.lammps.input import in_lammps_axes, write_data
from pimlip_zoo.deploy.lammps.run import run_lammps
from pimlip_zoo.deploy.native.export import export_native
from pimlip_zoo.deploy.torchscript import export_torchscript
from pimlip_zoo.training.checkpoint import load_potential

SCRIPT = """units {units}
atom_style atomic
newton on
plugin load {plugin}
{start}
{style}
{masses}
neighbor {skin} bin
neigh_modify every 1 delay 0 check yes
timestep {timestep}
{fix}
thermo {every}
thermo_style custom step etotal pe press vol temp
thermo_modify format float %.15g
{run}
write_dump all custom final.txt id x y z vx vy vz modify sort id format float %.17g
"""


def dynamics(folder, plugin, *, ranks=1, **settings):
    """Run a script made of the pieces above; returns the thermo table and the last frame."""
    pieces = {
        "units": "metal",
        "start": "read_data structure.data",
        "masses": "",
        "skin": 0.5,
        "timestep": 0.0005,
        "fix": "fix integrate all nve",
        "every": 50,
        "run": "run 100",
    } | settings
    script = folder / "in.lammps"
    script.write_text(SCRIPT.format(plugin=plugin, **pieces))
    text = run_lammps(script, ranks=ranks, timeout=600)
    rows, reading = [], False
    for line in text.splitlines():
        words = line.split()
        if words[:2] == ["Step", "TotEng"]:
            reading, rows = True, []
        elif reading and line.startswith("Loop time"):
            reading = False
        elif reading:
            rows.append([float(word) for word in words])
    return np.array(rows), np.loadtxt(folder / "final.txt", skiprows=9, ndmin=2)


def hot_structure(folder, temperature):
    atoms = geometries()["a bulk crystal"].copy()
    generator = np.random.default_rng(5)
    atoms.set_momenta(
        generator.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses() * 8.617e-5 * temperature)[:, None]
    )
    atoms.set_momenta(atoms.get_momenta() - atoms.get_momenta().mean(0))
    write_data(folder / "structure.data", atoms, SPECIES)
    return atoms


def style(model, species=SPECIES):
    return f"pair_style pimlip\npair_coeff * * {model} {' '.join(species)}"


@pytest.mark.parametrize(
    ("name", "file_format", "timestep"),
    # Untrained, NequIP is no smooth solid: what is left of the energy's error goes with the square of the step.
    [("pairs", "torchscript", 0.00025), ("nequip", "native", 0.00005)],
    indirect=["file_format"],
)
def test_nve_keeps_the_energy(name, timestep, tmp_path, plugin, exported):
    atoms = hot_structure(tmp_path, 300.0)
    rows, _ = dynamics(
        tmp_path, plugin, style=style(exported(name)), every=10, run="run 1000", timestep=timestep
    )
    time, energy = rows[:, 0] * timestep * 1e-3, rows[:, 1] / len(atoms)  # ns, eV/atom
    drift = np.polyfit(time, energy, 1)[0]
    kinetic = rows[:, 1] - rows[:, 2]
    assert np.ptp(kinetic / len(atoms)) > 1e-3  # something happened
    assert abs(drift) * 1000 < 1.0, f"{1000 * drift:.3f} meV/atom/ns"


@pytest.mark.parametrize(
    ("name", "file_format"),
    [("pairs", "torchscript"), ("messages3", "torchscript"), ("nequip", "native")],
    indirect=["file_format"],
)
def test_trajectories_do_not_depend_on_the_number_of_ranks(name, tmp_path, plugin, exported):
    # Hot enough for atoms to change ranks and for the neighbour lists to be rebuilt many times.
    final = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        hot_structure(folder, 20000.0)
        _, final[ranks] = dynamics(
            folder, plugin, style=style(exported(name)), skin=0.3, ranks=ranks, run="run 60"
        )
    moved = final[1][:, 1:4] - geometries()["a bulk crystal"].positions
    assert np.abs(moved).max() > 1.0
    assert np.abs(final[1] - final[2]).max() < 1e-8


@pytest.mark.parametrize(
    ("name", "file_format"), [("messages2", "torchscript"), ("nequip", "native")], indirect=["file_format"]
)
def test_a_restart_goes_on_where_the_run_ended(name, tmp_path, plugin, exported):
    hot_structure(tmp_path, 300.0)
    model = style(exported(name))
    _, straight = dynamics(tmp_path, plugin, style=model, run="run 80")
    dynamics(tmp_path, plugin, style=model, run="run 40\nwrite_restart half.restart")
    _, resumed = dynamics(tmp_path, plugin, style=model, start="read_restart half.restart", run="run 40")
    assert np.abs(straight - resumed).max() < 1e-9


FLUX = """compute ke all ke/atom
compute pe all pe/atom
compute stress all centroid/stress/atom NULL virial
compute flux all heat/flux ke pe stress
variable ex atom x*(c_ke+c_pe)
variable ey atom y*(c_ke+c_pe)
variable ez atom z*(c_ke+c_pe)
compute moment all reduce sum v_ex v_ey v_ez
thermo_style custom step etotal pe c_flux[1] c_flux[2] c_flux[3] c_moment[1] c_moment[2] c_moment[3]
thermo_modify format float %.17g
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("name", "file_format"), [("messages3", "torchscript"), ("nequip", "native")], indirect=["file_format"]
)
def test_the_heat_flux_is_the_time_derivative_of_where_the_energy_is(name, ranks, tmp_path, plugin, exported):
    # Of a cluster in NVE: the flux is d/dt sum r_i e_i, up to the square of the time step.
    atoms = geometries()["a molecule in a box"].copy()
    momenta = np.random.default_rng(4).normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta * np.sqrt(atoms.get_masses() * 8.617e-5 * 1000.0)[:, None])
    write_data(tmp_path / "structure.data", atoms, SPECIES)
    step = 2e-6  # ps
    rows, _ = dynamics(
        tmp_path,
        plugin,
        style=style(exported(name)),
        ranks=ranks,
        timestep=step,
        every=1,
        run=FLUX + "run 40",
    )
    flux, moment = rows[1:-1, 3:6], rows[:, 6:9]
    derivative = (moment[2:] - moment[:-2]) / (2 * step)
    assert np.sqrt(np.mean(flux**2)) > 0.1
    # The atomic energies do change: without what flows between atoms the flux would be another.
    assert np.abs(flux - derivative).max() < 1e-5 * np.sqrt(np.mean(flux**2))


def test_units_real_are_converted(tmp_path, plugin, exported):
    hot_structure(tmp_path, 300.0)
    metal, _ = dynamics(tmp_path, plugin, style=style(exported("pairs")), run="run 0")
    real, _ = dynamics(
        tmp_path, plugin, style=style(exported("pairs")), run="run 0", units="real", timestep=0.5
    )
    assert real[0, 2] / metal[0, 2] == pytest.approx(23.060549, rel=1e-6)
    # Velocities of the data file mean something else in real units: compare the virial without them.
    quiet = "velocity all set 0 0 0"
    pressures = [
        dynamics(tmp_path, plugin, style=style(exported("pairs")), fix=quiet, run="run 0", units=units)[0][
            0, 3
        ]
        for units in ("metal", "real")
    ]
    assert pressures[1] * 1.01325 == pytest.approx(pressures[0], rel=1e-5)  # atm and bar


def test_chunks_move_atoms_alike(tmp_path, plugin, exported):
    hot_structure(tmp_path, 300.0)
    _, whole = dynamics(tmp_path, plugin, style=style(exported("messages2")), run="run 20")
    chunked = style(exported("messages2")).replace("pimlip\n", "pimlip chunk 25\n")
    _, parts = dynamics(tmp_path, plugin, style=chunked, run="run 20")
    assert np.abs(whole - parts).max() < 1e-9


def test_npt_finds_the_volume_without_pressure(tmp_path, plugin, exported):
    atoms = bulk("Cu", cubic=True, a=3.9) * (3, 3, 3)
    atoms.symbols[::4] = "Al"
    write_data(tmp_path / "structure.data", in_lammps_axes(atoms), ("Cu", "Al"))
    rows, _ = dynamics(
        tmp_path,
        plugin,
        style=style(exported("morse", torch.float32), ("Cu", "Al")),
        timestep=0.002,
        every=10,
        fix="velocity all create 200 3\nfix integrate all npt temp 100 100 0.1 iso 0 0 0.3",
        run="run 1500",
    )
    late = rows[len(rows) // 2 :]
    lattice = (late[:, 4].mean() / 27) ** (1 / 3)
    potential = potential_of("morse")

    def energy(a):
        return predict(potential, bulk("Cu", cubic=True, a=a))[0]

    trial = np.linspace(3.5, 4.2, 141)
    ground = trial[np.argmin([energy(a) for a in trial])]
    assert abs(late[:, 5].mean() - 100.0) < 15.0
    assert abs(late[:, 3].mean()) < 2000.0  # bar
    assert abs(lattice - ground) < 0.05
    assert abs(rows[0, 4] ** (1 / 3) / 3 - ground) > 0.05  # it had to look for it


@pytest.fixture(scope="module")
def alloy(tmp_path_factory):
    """A run trained on the built-in alloys."""
    run, data = tmp_path_factory.mktemp("alloy") / "run", "builtin:cual-emt"
    words = f"train --model nequip --data {data} --valid {data}/valid --max-steps 1600 --set model.channels=8"
    command = [sys.executable, "-m", "pimlip_zoo", *words.split(), "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_potential(run)


@pytest.mark.slow
def test_nve_with_a_trained_model_in_float32_keeps_the_energy(tmp_path, plugin, alloy):
    model = export_torchscript(alloy, tmp_path / "alloy.nequip.pth", dtype=torch.float32).path
    atoms = bulk("Cu", cubic=True, a=3.7) * (3, 3, 3)
    atoms.symbols[::4] = "Al"
    write_data(tmp_path / "structure.data", in_lammps_axes(atoms), alloy.species)
    settings = {"fix": "velocity all create 300 1\nfix integrate all nve", "timestep": 0.001, "skin": 1.0}
    rows, _ = dynamics(
        tmp_path, plugin, style=style(model, alloy.species), every=10, run="run 1000", **settings
    )
    drift = np.polyfit(rows[:, 0] * 1e-6, rows[:, 1] / len(atoms), 1)[0]  # eV/atom/ns
    kinetic = rows[:, 1] - rows[:, 2]
    assert np.ptp(kinetic / len(atoms)) > 1e-2  # something happened
    assert abs(drift) * 1000 < 1.0, f"{1000 * drift:.3f} meV/atom/ns"


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["native"], indirect=True)
def test_npt_with_a_model_trained_on_the_builtin_alloys(tmp_path, plugin, alloy):
    with use_kernels("auto"):
        model = export_native(alloy, tmp_path / "alloy.pimlip", dtype=torch.float64).path
    atoms = bulk("Cu", cubic=True, a=3.85) * (3, 3, 3)
    atoms.symbols[::4] = "Al"
    species = alloy.species
    write_data(tmp_path / "structure.data", in_lammps_axes(atoms), species)
    dump = "dump frames all custom 50 frames.txt id type x y z\ndump_modify frames sort id format float %.17g"
    rows, _ = dynamics(
        tmp_path,
        plugin,
        style=style(model, species),
        timestep=0.002,
        every=10,
        fix=f"velocity all create 600 3\nfix integrate all npt temp 300 300 0.1 iso 0 0 0.5\n{dump}",
        run="run 1000",
    )
    late = rows[len(rows) // 2 :]
    assert abs(late[:, 5].mean() - 300.0) < 30.0
    assert abs(late[:, 3].mean()) < 2000.0  # bar
    frames = ase.io.read(tmp_path / "frames.txt", ":", format="lammps-dump-text", specorder=list(species))
    from ase.calculators.emt import EMT

    frames, pressure = frames[len(frames) // 2 :], []
    for frame, row in zip(frames, rows[rows[:, 0] % 50 == 0][-len(frames) :], strict=True):
        frame.calc = EMT()
        learned = frame.get_potential_energy()  # what the model was trained to say
        assert abs(row[2] - learned) / len(frame) < 0.015  # eV
        pressure.append(-np.trace(frame.get_stress(voigt=False)) / 3 / units.GPa)
    # The density within 1 %: what is left of the pressure in the theory that it learned, 1 GPa being 1 % of the volume.
    motion = 2 / 3 * np.mean(late[:, 1] - late[:, 2]) / np.mean(late[:, 4]) / units.GPa
    assert abs(np.mean(pressure) + motion) < 1.0
    assert late[:, 4].mean() < 0.985 * atoms.get_volume()  # it had to look for it
    # The pressure is the derivative of the energy, at the last frame.
    last, step = frames[-1], 1e-4
    scaled = []
    for factor in (1 - step, 1.0, 1 + step):
        copy = in_lammps_axes(last)
        copy.set_cell(copy.cell * factor ** (1 / 3), scale_atoms=True)
        scaled.append(copy)
    low, here, high = single_points(scaled, model=model, plugin=plugin, species=species)
    slope = -(high.energy - low.energy) / (2 * step * last.get_volume())
    virial = np.trace(here.virial) / 3 / last.get_volume()
    assert virial == pytest.approx(slope, abs=1e-6)
    kinetic = 2 / 3 * (rows[-1, 1] - rows[-1, 2]) / rows[-1, 4]
    assert rows[-1, 3] / BAR == pytest.approx(virial + kinetic, abs=1e-7)


def test_atom_ids_may_have_gaps(tmp_path, plugin, exported):
    hot_structure(tmp_path, 300.0)
    plain, _ = dynamics(tmp_path, plugin, style=style(exported("messages2")), run="run 5", every=5)
    lines = (tmp_path / "structure.data").read_text().splitlines()
    out, atoms = [], False
    for line in lines:
        words = line.split()
        atoms = atoms or line.startswith("Atoms")
        numbered = atoms and len(words) in (4, 5) and words[0].isdigit()
        out.append(" ".join([str(1000 + 37 * int(words[0])), *words[1:]]) if numbered else line)
    (tmp_path / "structure.data").write_text("\n".join(out) + "\n")
    spread, _ = dynamics(tmp_path, plugin, style=style(exported("messages2")), run="run 5", every=5)
    assert np.abs(plain - spread).max() < 1e-9


def test_hybrid_leaves_null_types_alone(tmp_path, plugin, exported):
    atoms = geometries()["a bulk crystal"]
    write_data(tmp_path / "structure.data", atoms, SPECIES)
    hybrid = (
        f"pair_style hybrid/overlay pimlip lj/cut 3.0\npair_coeff * * pimlip {exported('messages2')} H C NULL\n"
        "pair_coeff 3 3 lj/cut 0.01 1.5\npair_coeff 1*2 3 lj/cut 0.0 1.0"
    )
    fix = "compute ours all pair pimlip"
    run = "thermo_style custom step etotal c_ours press vol temp\nthermo_modify format float %.15g\nrun 0"
    rows, _ = dynamics(tmp_path, plugin, style=hybrid, fix=fix, run=run)
    alone = atoms[[atom.symbol != "O" for atom in atoms]]
    assert rows[0, 2] == pytest.approx(predict(potential_of("messages2"), alone)[0], rel=1e-10)
