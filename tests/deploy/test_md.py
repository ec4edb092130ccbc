"""Dynamics follow their ensemble, leave complete files, and stop when matter comes apart."""

from __future__ import annotations

import csv
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian
from ase.io import read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from pimlip_zoo.deploy.md import LOG_COLUMNS, MDSettings, run_md
from pimlip_zoo.deploy.relax import relax
from pimlip_zoo.deploy.stability import StabilityLimits, StabilityMonitor
from pimlip_zoo.errors import InputError
from pimlip_zoo.locks import claimed


class Springs(Calculator):
    """Springs between all pairs, at rest in the first structure; ``fault(call, forces)`` may spoil forces."""

    implemented_properties = ("energy", "forces")

    def __init__(self, atoms, constant=20.0, fault=None):
        super().__init__()
        self.rest = atoms.get_all_distances()
        self.constant, self.fault, self.calls = constant, fault, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        vectors = self.atoms.get_all_distances(vector=True)  # [i, j] = r_j - r_i
        lengths = np.linalg.norm(vectors, axis=-1) + np.eye(len(self.atoms))
        stretch = (lengths - np.eye(len(self.atoms)) - self.rest) * (1 - np.eye(len(self.atoms)))
        self.results["energy"] = self.constant / 4 * float((stretch**2).sum())
        forces = self.constant * (stretch[..., None] * vectors / lengths[..., None]).sum(axis=1)
        self.results["forces"] = forces if self.fault is None else self.fault(self.calls, forces)
        self.calls += 1


def copper(repeat=2, **options):
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(repeat)
    atoms.calc = EMT(**options)
    return atoms


def ethanol(**options):
    atoms = molecule("CH3CH2OH")
    atoms.calc = Springs(atoms, **options)
    return atoms


def log_of(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


# What the structure says beyond positions.


def test_what_constraints_hold_is_held_when_a_run_is_continued(tmp_path):
    atoms = copper()
    held, along = np.r_[0:8, 10], [12, 20]
    atoms.set_constraint([FixAtoms(held), FixCartesian(along, mask=(False, True, True))])
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    start = np.round(atoms.positions, 8)
    atoms.set_positions(start, apply_constraint=False)
    settings = {"steps": 20, "timestep": 2.0, "temperature": 300}
    run_md(atoms, MDSettings(**settings), tmp_path / "1")
    middle = read(tmp_path / "1" / "final.extxyz")
    middle.calc = EMT()
    run_md(middle, MDSettings(keep_velocities=True, **settings), tmp_path / "2")
    for folder in ("1", "2"):
        for frame in read(tmp_path / folder / "trajectory.extxyz", ":"):
            assert np.abs(frame.positions - start)[held].max() == 0.0
            assert np.abs(frame.positions - start)[along, 1:].max() == 0.0
    final = read(tmp_path / "2" / "final.extxyz")
    assert np.abs(final.positions - start)[along, 0].min() > 1e-3
    final.calc = EMT()
    relax(final, steps=5)
    assert np.abs(final.positions - start)[held].max() == 0.0


def test_forces_in_the_trajectory_are_those_of_the_model_on_atoms_that_are_held_too(tmp_path):
    from pimlip_zoo.datasets.readers import load_frames

    atoms = copper()
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    atoms.set_constraint(FixAtoms(range(8)))
    run_md(atoms, MDSettings(steps=4, interval=2), tmp_path)
    for frame in load_frames(str(tmp_path / "trajectory.extxyz")):
        loose = copper()
        loose.positions = frame.positions
        assert np.abs(frame.forces - loose.get_forces()).max() < 1e-5
        assert np.abs(frame.forces[:8]).max() > 0.1


def test_masses_charges_and_tags_are_carried_on(tmp_path):
    atoms = ethanol()
    masses = atoms.get_masses()
    masses[3] = 2.014
    atoms.set_masses(masses)
    atoms.set_initial_charges(np.linspace(-0.4, 0.4, 9))
    atoms.set_initial_magnetic_moments(np.arange(9.0))
    atoms.set_tags(range(9))
    run_md(atoms, MDSettings(steps=3), tmp_path)
    final = read(tmp_path / "final.extxyz")
    assert np.allclose(final.get_masses(), masses, atol=1e-7)
    assert np.allclose(final.get_initial_charges(), atoms.get_initial_charges(), atol=1e-7)
    assert np.allclose(final.get_initial_magnetic_moments(), np.arange(9.0))
    assert final.get_tags().tolist() == list(range(9))


def test_constraints_that_the_files_cannot_keep_are_refused(tmp_path):
    atoms = ethanol()
    atoms.set_constraint(FixBondLengths([[0, 1]]))
    with pytest.raises(InputError, match="FixBondLengths cannot be kept"):
        run_md(atoms, MDSettings(steps=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Ensembles.


def test_nve_keeps_the_total_energy_and_says_by_how_much(tmp_path):
    settings = MDSettings(ensemble="nve", temperature=300, steps=300, timestep=2.0, interval=5)
    result = run_md(copper(), settings, tmp_path)
    assert result.stable
    assert result.steps == 300
    assert result.verdict.startswith("stable for 600 fs")
    energies = np.array([float(row["total_energy_eV"]) for row in log_of(tmp_path)]) / 32
    potential = np.array([float(row["potential_energy_eV"]) for row in log_of(tmp_path)]) / 32
    assert np.ptp(energies) < 1e-3
    assert np.ptp(potential) > 10 * np.ptp(energies)
    assert abs(result.energy_drift) < 1


def test_nvt_reaches_the_temperature_of_the_bath_from_rest_and_from_above(tmp_path):
    for start, folder in ((0.0, "cold"), (900.0, "hot")):
        atoms = ethanol()
        MaxwellBoltzmannDistribution(atoms, temperature_K=start, rng=np.random.default_rng(0))
        settings = MDSettings(temperature=400, steps=1500, friction=0.05, interval=10, keep_velocities=True)
        run_md(atoms, settings, tmp_path / folder)
        temperatures = [float(row["temperature_K"]) for row in log_of(tmp_path / folder)[30:]]
        assert np.mean(temperatures) == pytest.approx(400, rel=0.2)


@pytest.mark.parametrize("pressure", [20.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_npt_brings_a_crystal_to_the_volume_that_belongs_to_the_pressure(tmp_path, pressure):
    cold = copper(1)
    relax(cold, cell=True, keep_shape=True, pressure=pressure)
    atoms = copper(1)
    atoms.set_cell(np.array(atoms.cell) * 0.985, scale_atoms=True)
    settings = MDSettings(
        ensemble="npt", temperature=30, pressure=pressure, steps=500, timestep=4.0, interval=10, seed=1
    )
    result = run_md(atoms, settings, tmp_path)
    assert result.stable, result.verdict
    rows = log_of(tmp_path)[20:]
    assert np.mean([float(row["pressure_GPa"]) for row in rows]) == pytest.approx(pressure, abs=2.0)
    assert np.mean([float(row["volume_A3"]) for row in rows]) / 4 == pytest.approx(
        cold.get_volume() / 4, rel=0.01
    )


def test_the_seed_decides_the_trajectory(tmp_path):
    ends = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        atoms = ethanol()
        run_md(atoms, MDSettings(steps=20, seed=seed), tmp_path / name)
        ends.append(atoms.positions)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3


@pytest.mark.parametrize("seed", [0, 3])
def test_every_part_of_a_langevin_run_has_random_kicks_of_its_own(seed, tmp_path):
    # Without forces velocities change by friction, which the kicks of a bath follow: what is left tells them.
    atoms = Atoms("Ar6", positions=np.arange(18).reshape(6, 3) * 20.0)
    atoms.calc = Springs(atoms, constant=0.0)
    settings = MDSettings(steps=1, temperature=300, friction=0.05, seed=seed)
    run_md(atoms, settings, tmp_path / "0")
    kicks = []
    for part in (1, 2, 3):
        atoms = read(tmp_path / str(part - 1) / "final.extxyz")
        atoms.calc = Springs(atoms, constant=0.0)
        before = atoms.get_velocities()
        run_md(atoms, MDSettings(**{**vars(settings), "keep_velocities": True}), tmp_path / str(part))
        decay = np.exp(-0.05 * 0.5)
        kicks.append((atoms.get_velocities() - decay * before).ravel())
    correlations = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(kicks, [*kicks[1:], kicks[0]], strict=True)]
    assert max(correlations) < 0.7
    # And the same start with the same seed goes the same way again.
    again = read(tmp_path / "2" / "final.extxyz")
    again.calc = Springs(again, constant=0.0)
    run_md(again, MDSettings(**{**vars(settings), "keep_velocities": True}), tmp_path / "again")
    np.testing.assert_array_equal(again.positions, atoms.positions)


# What is written.


def test_every_interval_and_the_last_step_are_written_with_energy_forces_and_velocities(tmp_path):
    atoms = copper()
    seen = []
    run_md(atoms, MDSettings(ensemble="nve", steps=25, interval=10), tmp_path, progress=seen.append)
    frames = read(tmp_path / "trajectory.extxyz", ":")
    rows = log_of(tmp_path)
    assert [frame.info["step"] for frame in frames] == [0, 10, 20, 25]
    assert [int(row["step"]) for row in rows] == [row["step"] for row in seen] == [0, 10, 20, 25]
    assert tuple(rows[0]) == LOG_COLUMNS
    for frame, row in zip(frames, rows, strict=True):
        check = frame.copy()
        check.calc = EMT()
        assert frame.get_potential_energy() == pytest.approx(float(row["potential_energy_eV"]), abs=1e-6)
        np.testing.assert_allclose(frame.get_forces(), check.get_forces(), atol=1e-6)
        np.testing.assert_allclose(frame.get_stress(), check.get_stress(), atol=1e-6)
        assert frame.get_temperature() == pytest.approx(float(row["temperature_K"]), rel=1e-4)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["stable"] is True
    assert result["steps"] == 25
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "final.extxyz",
        "log.csv",
        "result.json",
        "trajectory.extxyz",
    ]


def test_going_on_from_the_final_frame_with_its_velocities_continues_the_trajectory(tmp_path):
    whole, first = copper(), copper()
    settings = {"ensemble": "nve", "temperature": 500, "timestep": 1.0, "seed": 3}
    run_md(whole, MDSettings(steps=30, **settings), tmp_path / "whole")
    run_md(first, MDSettings(steps=10, **settings), tmp_path / "first")
    second = read(tmp_path / "first" / "final.extxyz")
    second.calc = EMT()
    run_md(second, MDSettings(steps=20, keep_velocities=True, **settings), tmp_path / "second")
    # extxyz has eight decimals; over 20 fs their error stays small
    np.testing.assert_allclose(second.positions, whole.positions, atol=1e-6)


def test_of_two_simulations_that_want_one_folder_at_the_same_moment_one_gets_it(tmp_path):
    start = threading.Barrier(2)

    def work(seed):
        atoms = copper(1)
        start.wait()
        try:
            return run_md(atoms, MDSettings(steps=20, interval=5, seed=seed), tmp_path / "md").steps
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        steps, refusal = sorted(pool.map(work, (0, 1)), key=lambda result: isinstance(result, str))
    assert steps == 20
    assert "is writing to it" in refusal or "holds a simulation already" in refusal
    assert len(read(tmp_path / "md" / "trajectory.extxyz", ":")) == 5
    names = {path.name for path in (tmp_path / "md").iterdir()}
    assert names == {"trajectory.extxyz", "log.csv", "final.extxyz", "result.json"}


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    with claimed(tmp_path / "md"), pytest.raises(InputError, match=r"md: .* is writing to it"):
        run_md(copper(1), MDSettings(steps=1), tmp_path / "md")


@pytest.mark.parametrize("name", ["final.extxyz", "result.json", "log.csv"])
def test_files_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=f"{name}: is there"):
        run_md(copper(1), MDSettings(steps=1), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_the_log_of_a_simulation_that_was_killed_before_its_first_frame_is_replaced(tmp_path):
    (tmp_path / "log.csv").write_text(",".join(LOG_COLUMNS) + "\r\n")
    assert run_md(copper(1), MDSettings(steps=1), tmp_path).steps == 1


def test_a_full_disk_ends_a_simulation_with_whole_frames(tmp_path):
    import resource

    run_md(copper(1), MDSettings(steps=0), tmp_path / "one")
    frame = (tmp_path / "one" / "trajectory.extxyz").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(3.5 * frame), hard))  # no file grows beyond that
    try:
        with pytest.raises(InputError, match=r"md/trajectory\.extxyz: cannot be written: file too large"):
            run_md(copper(1), MDSettings(steps=9, interval=1), tmp_path / "md")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [frame.info["step"] for frame in read(tmp_path / "md" / "trajectory.extxyz", ":")] == [0, 1, 2]
    assert {path.name for path in (tmp_path / "md").iterdir()} == {"trajectory.extxyz", "log.csv"}


def test_no_steps_write_the_first_frame(tmp_path):
    result = run_md(ethanol(), MDSettings(steps=0), tmp_path)
    assert result.stable
    assert len(read(tmp_path / "trajectory.extxyz", ":")) == 1


def test_a_signal_ends_after_the_step_with_everything_written(tmp_path):
    steps = iter([False] * 13 + [True] * 100)
    result = run_md(ethanol(), MDSettings(steps=1000), tmp_path, stop=lambda: next(steps))
    assert result.interrupted
    assert not result.stable
    assert result.steps == 13
    assert read(tmp_path / "final.extxyz").info["step"] == 13
    assert "interrupted" in json.loads((tmp_path / "result.json").read_text())["verdict"]


# Stability.


def test_a_force_that_is_not_a_number_ends_at_that_step_and_names_the_atom(tmp_path):
    def fault(call, forces):
        forces[4] = np.nan if call >= 7 else forces[4]
        return forces

    result = run_md(ethanol(fault=fault), MDSettings(ensemble="nve", steps=100), tmp_path)
    assert not result.stable
    assert result.steps == 7
    assert "the force of atom H4 is not a number" in result.verdict
    summary = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert summary["stable"] is False


def test_a_broken_bond_ends_the_simulation_and_is_named(tmp_path):
    atoms = ethanol(constant=0.0)
    atoms.set_velocities(np.zeros((9, 3)))
    velocities = np.zeros((9, 3))
    velocities[3] = [0, 0.05, 0.0]  # the hydroxyl hydrogen leaves
    atoms.set_velocities(velocities)
    settings = MDSettings(ensemble="nve", steps=2000, keep_velocities=True)
    result = run_md(atoms, settings, tmp_path, limits=StabilityLimits(temperature_factor=1000))
    assert not result.stable
    assert "bond" in result.verdict
    assert "H3" in result.verdict
    assert result.steps < 2000
    assert len(read(tmp_path / "trajectory.extxyz", ":")) == len(log_of(tmp_path))


def test_a_reaction_may_break_bonds_where_bonds_are_not_watched(tmp_path):
    atoms = ethanol(constant=0.0)
    limits = StabilityLimits(bond_stretch=None, collapse=0.0)
    result = run_md(atoms, MDSettings(ensemble="nve", steps=1000, timestep=1.0), tmp_path, limits=limits)
    assert result.stable


def test_each_kind_of_fault_is_found():
    def check(atoms, change, *, conserves=True, temperature=300.0, **limits):
        atoms.set_momenta(np.zeros((len(atoms), 3)))
        monitor = StabilityMonitor(
            atoms, temperature=temperature, conserves_energy=conserves, limits=StabilityLimits(**limits)
        )
        assert monitor.check(atoms) is None
        change(atoms)
        return monitor.check(atoms)

    def move(index, to):
        def change(atoms):
            atoms.positions[index] = to

        return change

    def heat(temperature):
        return lambda atoms: atoms.set_momenta(
            np.sqrt(3 * units.kB * temperature * atoms.get_masses())[:, None] * [[1, 0, 0]]
        )

    def scale(factor):
        return lambda atoms: atoms.set_cell(np.array(atoms.cell) * factor, scale_atoms=True)

    assert "came as close as 0.10 Å" in check(copper(), move(1, [0.1, 0, 0]))
    assert "is not a number" in check(copper(), move(1, [np.nan, 0, 0]))
    assert "meV/atom" in check(copper(), heat(900.0))
    assert check(copper(), heat(900.0), conserves=False) is None
    assert "rose to 1600 K" in check(copper(), heat(1600.0), conserves=False)
    assert "the volume became 2.20 times" in check(copper(), scale(2.2 ** (1 / 3)), conserves=False)
    assert "the volume became 0.45 times" in check(
        copper(), scale(0.45 ** (1 / 3)), conserves=False, collapse=0.1
    )
    crushed = check(ethanol(), lambda a: a.set_distance(0, 1, 0.98, fix=0), conserves=False)
    assert "the bond C0-C1 was crushed" in crushed


def test_bonds_across_a_cell_boundary_are_followed_when_atoms_are_not_wrapped():
    atoms = Atoms("OH", positions=[[0.1, 0, 0], [9.2, 0, 0]], cell=[10, 10, 10], pbc=True)
    atoms.calc = Springs(atoms, constant=0.0)
    atoms.set_momenta(np.zeros((2, 3)))
    monitor = StabilityMonitor(atoms, temperature=300, conserves_energy=False)
    assert monitor.bond_count == 1
    atoms.positions += [35.0, 0, 0]
    assert monitor.check(atoms) is None
    atoms.positions[1, 0] -= 0.8
    assert "broke: 0.90 Å at the start, 1.70 Å now" in monitor.check(atoms)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_proton_may_move_to_an_oxygen_but_not_to_a_carbon_nor_away(periodic):
    def monitored(symbols):
        atoms = Atoms(
            symbols, positions=[[0.2, 0, 0], [9.2, 0, 0], [7.75, 0, 0]], cell=[10, 10, 10], pbc=periodic
        )
        if not periodic:
            atoms.positions[0, 0] += 10
        atoms.calc = Springs(atoms, constant=0.0)
        atoms.set_momenta(np.zeros((3, 3)))
        return atoms, StabilityMonitor(atoms, temperature=300, conserves_energy=False)

    atoms, monitor = monitored("OHO")
    assert monitor.bond_count == 1
    atoms.positions[1, 0] = 8.65
    assert monitor.check(atoms) is None
    atoms.positions[1, 1] = 1.5
    assert "the bond O0-H1 broke" in monitor.check(atoms)
    atoms, monitor = monitored("OHC")
    atoms.positions[1, 0] = 8.65
    assert "the bond O0-H1 broke" in monitor.check(atoms)


def test_bonds_of_metals_are_not_watched_and_one_atom_is_fine(tmp_path):
    atoms = copper()
    atoms.set_momenta(np.zeros((32, 3)))
    assert StabilityMonitor(atoms, temperature=300, conserves_energy=True).bond_count == 0
    one = Atoms("Cu", calculator=EMT())
    assert run_md(one, MDSettings(ensemble="nvt", steps=20), tmp_path).stable


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-6},
        {"temperature": 0.01},
        {"temperature": 1e-310},
        {"timestep": 1e10},
        {"pressure": 1e300},
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_step_that_leads_beyond_all_numbers_ends_the_simulation_at_the_one_before(tmp_path, options):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    result = run_md(
        atoms, MDSettings(**{"ensemble": "npt", "timestep": 1.0, "steps": 20} | options), tmp_path
    )
    assert not result.stable
    assert "the next step leads to positions, velocities or a cell beyond all numbers" in result.verdict
    frames = read(tmp_path / "trajectory.extxyz", ":")
    steps = [int(row["step"]) for row in log_of(tmp_path)]
    assert steps == sorted(set(steps))
    assert len(frames) == len(steps)
    assert steps[-1] == result.steps
    assert np.isfinite(read(tmp_path / "final.extxyz").positions).all()


def test_what_a_calculator_says_of_good_positions_is_not_taken_for_a_step_beyond_all_numbers(tmp_path):
    class Refusing(EMT):
        calls = 0

        def calculate(self, *args, **kwargs):
            self.calls += 1
            if self.calls > 4:
                raise ValueError("no such element")
            super().calculate(*args, **kwargs)

    atoms = bulk("Cu", cubic=True)
    atoms.calc = Refusing()
    with pytest.raises(ValueError, match="no such element"):
        run_md(atoms, MDSettings(ensemble="nve", steps=30), tmp_path)


# What the user gets wrong.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nvtt"}, "did you mean nvt"),
        ({"steps": -1}, "steps"),
        ({"interval": 0}, "interval"),
        ({"timestep": 0.0}, "timestep"),
        ({"temperature": float("nan")}, "temperature"),
        ({"pressure": float("inf")}, "pressure"),
        ({"ensemble": "npt", "temperature": 0.0}, "temperature: NPT needs a bath that is warmer than 0 K"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MDSettings(**options)


def test_what_cannot_be_simulated_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="periodic in all three"):
        run_md(ethanol(), MDSettings(ensemble="npt"), out)
    with pytest.raises(InputError, match="no velocities"):
        run_md(ethanol(), MDSettings(keep_velocities=True), out)
    with pytest.raises(InputError, match="no atoms"):
        run_md(Atoms(), MDSettings(), out)
    assert not out.exists()
    run_md(ethanol(), MDSettings(steps=1), out)
    before = (out / "trajectory.extxyz").read_bytes()
    with pytest.raises(InputError, match="already"):
        run_md(ethanol(), MDSettings(steps=1), out)
    assert (out / "trajectory.extxyz").read_bytes() == before
    with pytest.raises(InputError, match="is a file"):
        run_md(ethanol(), MDSettings(steps=1), out / "log.csv")


def test_velocities_of_held_atoms_are_not_kept(tmp_path, caplog):
    """ASE writes momenta and constraints side by side; kept, they would be heat that is gone after a step."""
    atoms = copper()
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    moving = atoms.get_momenta()
    moving[:3] = 0.0
    result = run_md(atoms, MDSettings(ensemble="nve", steps=20, keep_velocities=True), tmp_path / "md")
    assert result.stable
    first = read(tmp_path / "md" / "trajectory.extxyz", 0)
    np.testing.assert_allclose(first.arrays["momenta"], moving, atol=1e-7)
    energies = [float(row["total_energy_eV"]) for row in log_of(tmp_path / "md")]
    assert np.ptp(energies) < 1e-2
    assert "velocities of 3 held atoms are not kept" in caplog.text
