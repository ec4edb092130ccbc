"""Molecular dynamics with ASE: ensembles, trajectory, log, and a verdict on whether it was stable."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.deploy.constraints import held_coordinates, holding
from pimlip_zoo.deploy.stability import StabilityLimits, StabilityMonitor
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.files import append, regular_file, replacing
from pimlip_zoo.locks import claimed
from pimlip_zoo.outputs import check_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ase import Atoms

log = logging.getLogger("pimlip_zoo")

ENSEMBLES = ("nve", "nvt", "npt")
LOG_COLUMNS = (
    "step",
    "time_fs",
    "potential_energy_eV",
    "kinetic_energy_eV",
    "total_energy_eV",
    "temperature_K",
    "volume_A3",
    "pressure_GPa",
    "largest_force_eV_A",
)
SPREAD_COLUMN = "largest_force_std_eV_A"
"""The column that the log of a committee has, too."""
_LOG_BEGINS = ",".join(LOG_COLUMNS[:3]).encode()
_MOST = 2**63
_CHECK_EVERY = 10
_FAR = 1e50
"""Of positions (Å), momenta and cells that are none any more."""
_THERMOSTAT_TIME = 100.0  # fs
_BAROSTAT_TIME = 1000.0  # fs


@dataclass(frozen=True, kw_only=True)
class MDSettings:
    """What is simulated.

    NVE is velocity Verlet; NVT Langevin dynamics; NPT the equations of Martyna, Tobias and Klein,
    J. Chem. Phys. 101, 4177 (1994), which scale the cell isotropically, with characteristic times of
    0.1 ps for the temperature and 1 ps for the pressure.
    """

    ensemble: str = "nvt"
    """One of :data:`ENSEMBLES`."""
    temperature: float = 300.0
    """K; of the initial velocities, and of the bath for NVT and NPT."""
    steps: int = 1000
    timestep: float = 0.5
    """fs."""
    pressure: float = 0.0
    """GPa, for NPT."""
    friction: float = 0.01
    """1/fs, of the Langevin thermostat."""
    seed: int = 0
    interval: int = 10
    """Steps between frames in the trajectory and lines in the log."""
    keep_velocities: bool = False
    """Go on with the velocities that the structure has, rather than draw them. The thermostat's random numbers
    then follow from the seed and these velocities: every part of a simulation has its own."""

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            hint = did_you_mean(self.ensemble, ENSEMBLES)
            raise InputError(f"there is no ensemble {self.ensemble!r}", key="ensemble", hint=hint)
        for name, least in (
            ("steps", 0),
            ("interval", 1),
            ("temperature", 0.0),
            ("friction", 0.0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not least <= value < _MOST:  # NaN is neither
                raise InputError(f"{value} is not possible", key=name, hint=f"at least {least}")
        if self.ensemble == "npt" and self.temperature == 0:
            raise InputError(
                "NPT needs a bath that is warmer than 0 K", key="temperature", hint="give more, or take nvt"
            )
        if not (np.isfinite(self.timestep) and self.timestep > 0):
            raise InputError(f"{self.timestep} fs is not possible", key="timestep", hint="more than 0")
        if not np.isfinite(self.pressure):
            raise InputError(f"{self.pressure} GPa is not possible", key="pressure")


@dataclass(frozen=True, kw_only=True)
class MDResult:
    """How a simulation went."""

    stable: bool
    """Whether all the steps were done and every check passed."""
    verdict: str
    """One sentence."""
    steps: int
    """Steps done."""
    time_fs: float
    mean_temperature: float
    """K, over the lines of the log."""
    energy_drift: float | None
    """meV/atom/ps, slope of the total energy; NVE only."""
    interrupted: bool = False
    """Whether it was told to stop."""


def run_md(
    atoms: Atoms,
    settings: MDSettings,
    out: Path,
    *,
    limits: StabilityLimits | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    watch: Callable[[Atoms, int], str | None] | None = None,
) -> MDResult:
    """Simulate, watch, write.

    Writes into the folder: ``trajectory.extxyz`` (positions, momenta, energy, forces), ``log.csv``
    (:data:`LOG_COLUMNS`; of a committee :data:`SPREAD_COLUMN`, too), and at the end ``final.extxyz``, from
    which ``keep_velocities`` goes on, and ``result.json``. The simulation ends early when
    :class:`StabilityMonitor` finds something; the frame that it found fault with is the last of the trajectory.

    Args:
        atoms: the structure, with a calculator; moved in place.
        settings: what is simulated.
        out: the folder; made where it is missing.
        limits: what counts as unstable.
        progress: called with each line of the log.
        stop: asked after every step; True ends the simulation as if all steps were done.
        watch: asked with the structure and the step as often as stability is checked; a reason ends the simulation.

    Raises:
        InputError: for a folder that holds a simulation already or that another process writes to, a structure
            without atoms, velocities that are to be kept but are not there, NPT without a cell periodic in all
            directions, constraints other than ``FixAtoms`` and ``FixCartesian``, a disk that is full.
    """
    _check_structure(atoms, settings)
    _check_folder(out)
    generator = _generator(atoms, settings)
    _set_velocities(atoms, settings, generator)
    monitor = StabilityMonitor(
        atoms,
        temperature=settings.temperature,
        conserves_energy=settings.ensemble == "nve",
        limits=limits,
    )
    dynamics = _dynamics(atoms, settings, generator)
    with claimed(out):
        _check_folder(out)  # another process may have been there since the first look
        rows: list[dict[str, float]] = []
        fault, reason, interrupted = None, None, False
        (out / "log.csv").unlink(missing_ok=True)
        for step, broken in _steps(atoms, dynamics, settings.steps):
            fault = broken or monitor.check_finite(atoms)
            if fault is None and (step % min(settings.interval, _CHECK_EVERY) == 0 or step == settings.steps):
                fault = monitor.check(atoms)
                reason = watch(atoms, step) if watch is not None and fault is None else None
            interrupted = stop is not None and step < settings.steps and stop()
            ends = bool(fault) or bool(reason) or interrupted or step == settings.steps
            if ends or step % settings.interval == 0:
                row = _row(atoms, step, settings)
                if not rows or rows[-1]["step"] != step:
                    _write(out, atoms, row, first=not rows)
                    rows.append(row)
                    if progress is not None:
                        progress(row)
            if ends:
                break
        result = _result(rows, settings, fault, len(atoms), interrupted=interrupted, reason=reason)
        _write_end(out, atoms, rows[-1], result)
        return result


def _write(out: Path, atoms: Atoms, row: dict[str, float], *, first: bool) -> None:
    """A line of the log and a frame of the trajectory."""
    log, line = out / "log.csv", ",".join(_text(value) for value in row.values())
    try:
        append(log, f"{','.join(row)}\r\n{line}\r\n" if first else f"{line}\r\n")
        append(out / "trajectory.extxyz", _frame_text(atoms, row))
    except InputError:
        if first:  # not a single frame: there is nothing to keep
            log.unlink(missing_ok=True)
        raise


def _steps(atoms: Atoms, dynamics: Any, count: int) -> Iterator[tuple[int, str | None]]:
    """0, 1, ... count, each after that many steps; the last one again, and why, where the next leads nowhere."""
    yield 0, None
    for done in range(1, count + 1):
        before = [values.copy() for values in _state(atoms)]
        try:
            dynamics.step()
        except (
            ArithmeticError,
            RuntimeError,
            ValueError,
        ):  # of what ASE or a calculator does with such numbers
            if all(bool((np.abs(values) < _FAR).all()) for values in _state(atoms)):
                raise
            positions, momenta, cell = before
            atoms.set_cell(cell)
            atoms.set_positions(positions, apply_constraint=False)
            atoms.set_momenta(momenta, apply_constraint=False)
            yield done - 1, "the next step leads to positions, velocities or a cell beyond all numbers"
            return
        yield done, None


def _state(atoms: Atoms) -> tuple[Any, ...]:
    return atoms.positions, atoms.arrays["momenta"], atoms.cell.array


def _check_structure(atoms: Atoms, settings: MDSettings) -> None:
    if len(atoms) == 0:
        raise InputError("the structure has no atoms", key="structure")
    if settings.ensemble == "npt" and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise InputError(
            "NPT needs a cell that is periodic in all three directions", key="ensemble", hint="take nvt"
        )
    if settings.keep_velocities and not atoms.has("momenta"):
        raise InputError(
            "the structure has no velocities to keep",
            key="structure",
            hint="continue from the final.extxyz of a simulation, or let velocities be drawn",
        )
    if not np.all(atoms.get_masses() > 0) or not np.isfinite(atoms.get_masses()).all():
        raise InputError("a mass is no positive number", key="masses")
    # What final.extxyz can say, so that whoever goes on from it holds the same:
    if held_coordinates(atoms).all():
        raise InputError("all atoms are held fixed", key="structure", hint="remove the constraints")
    if atoms.constraints and settings.ensemble == "npt":
        raise InputError("NPT cannot hold atoms fixed", key="structure", hint="remove the constraints")


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("is a file, a folder is needed", file=out)
    if (out / "trajectory.extxyz").exists():
        raise InputError("holds a simulation already", file=out, hint="name another folder")
    check_unused(out, ("final.extxyz", "result.json"), key=None)
    log = out / "log.csv"
    if log.exists() and not _is_log(log):
        raise InputError("is there, and is no log of a simulation", file=log, hint="name another folder")


def _is_log(path: Path) -> bool:
    """Whether a simulation that was killed at its first step left it."""
    with regular_file(path).open("rb") as file:
        return file.read(len(_LOG_BEGINS)) in (b"", _LOG_BEGINS)


def _generator(atoms: Atoms, settings: MDSettings) -> np.random.Generator:
    if not settings.keep_velocities:
        return np.random.default_rng(settings.seed)
    # The same random kicks in every part would add up: where this part starts from makes them others.
    state = np.ascontiguousarray([atoms.positions, atoms.get_momenta()], dtype="<f8")
    digest = hashlib.sha256(state.tobytes()).digest()
    return np.random.default_rng([settings.seed, *np.frombuffer(digest, "<u4").tolist()])


def _set_velocities(atoms: Atoms, settings: MDSettings, generator: np.random.Generator) -> None:
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    if settings.keep_velocities:
        before = atoms.get_momenta()
        atoms.set_momenta(before)  # held atoms have none, whatever the file says
        held = np.flatnonzero((atoms.get_momenta() != before).any(axis=1))
        if len(held):
            log.warning("velocities of %d held atoms are not kept", len(held))
        return
    MaxwellBoltzmannDistribution(atoms, temperature_K=settings.temperature, rng=generator)
    if settings.ensemble != "nvt" and len(atoms) > 1:
        Stationary(atoms)  # Langevin dynamics thermalises the centre of mass, the other two keep it


def _dynamics(atoms: Atoms, settings: MDSettings, generator: np.random.Generator) -> Any:
    from ase import units

    timestep = settings.timestep * units.fs
    if settings.ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, timestep)
    if settings.ensemble == "nvt":
        from ase.md.langevin import Langevin

        friction = settings.friction / units.fs
        return Langevin(
            atoms,
            timestep,
            temperature_K=settings.temperature,
            friction=friction,
            fixcm=False,
            rng=generator,
        )
    try:
        from ase.md.nose_hoover_chain import IsotropicMTKNPT
    except ImportError as error:
        raise InputError(
            "this version of ASE has no Martyna-Tobias-Klein NPT", hint="pip install -U ase"
        ) from error
    return IsotropicMTKNPT(
        atoms,
        timestep,
        temperature_K=settings.temperature,
        pressure_au=settings.pressure * units.GPa,
        tdamp=_THERMOSTAT_TIME * units.fs,
        pdamp=_BAROSTAT_TIME * units.fs,
    )


def _row(atoms: Atoms, step: int, settings: MDSettings) -> dict[str, float]:
    potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
    row = {
        "step": step,
        "time_fs": step * settings.timestep,
        "potential_energy_eV": potential,
        "kinetic_energy_eV": kinetic,
        "total_energy_eV": potential + kinetic,
        "temperature_K": float(atoms.get_temperature()),
        "volume_A3": abs(float(atoms.cell.volume)) if atoms.cell.rank == 3 else np.nan,
        "pressure_GPa": _pressure(atoms),
        "largest_force_eV_A": float(np.linalg.norm(atoms.get_forces(), axis=1).max()),
    }
    spread = atoms.calc.results.get("forces_std")
    return row if spread is None else row | {SPREAD_COLUMN: float(spread.max())}


def _pressure(atoms: Atoms) -> float:
    """With the ideal-gas part, in GPa; NaN where there is no volume or the calculator has no stress."""
    from ase import units
    from ase.calculators.calculator import PropertyNotImplementedError

    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        return np.nan
    try:
        stress = atoms.get_stress(include_ideal_gas=True)
    except (PropertyNotImplementedError, NotImplementedError):
        return np.nan
    return float(-stress[:3].mean() / units.GPa)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _frame_text(atoms: Atoms, row: dict[str, float]) -> str:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.extxyz import write_extxyz

    frame = atoms.copy()
    frame.set_constraint(holding(held_coordinates(atoms)))
    forces = atoms.get_forces(apply_constraint=False)  # labels: those of atoms that are held, too
    results: dict[str, Any] = {"energy": row["potential_energy_eV"], "forces": forces}
    if np.isfinite(row["pressure_GPa"]):
        results["stress"] = atoms.get_stress()
    frame.calc = SinglePointCalculator(frame, **results)
    frame.info.update(step=int(row["step"]), time_fs=float(row["time_fs"]))
    text = StringIO()
    write_extxyz(text, [frame])
    return text.getvalue()


def _result(
    rows: list[dict[str, float]],
    settings: MDSettings,
    fault: str | None,
    atoms: int,
    *,
    interrupted: bool,
    reason: str | None,
) -> MDResult:
    time = rows[-1]["time_fs"]
    drift = _drift(rows, atoms) if settings.ensemble == "nve" else None
    if fault is not None:
        verdict = f"unstable after {time:g} fs (step {rows[-1]['step']}): {fault}"
    elif reason is not None:
        verdict = f"stopped after {time:g} fs (step {rows[-1]['step']}): {reason}"
    elif interrupted:
        verdict = f"interrupted after {time:g} fs, stable until then"
    else:
        verdict = f"stable for {time:g} fs"
        if drift is not None:
            verdict += f", total energy drifts by {drift:+.3g} meV/atom/ps"
    return MDResult(
        stable=fault is None and reason is None and not interrupted,
        verdict=verdict,
        steps=int(rows[-1]["step"]),
        time_fs=time,
        mean_temperature=float(np.mean([row["temperature_K"] for row in rows])),
        energy_drift=drift,
        interrupted=interrupted,
    )


def _drift(rows: list[dict[str, float]], atoms: int) -> float | None:
    """Slope of a straight line through the total energy, meV/atom/ps."""
    times = np.array([row["time_fs"] for row in rows]) / 1000
    energies = np.array([row["total_energy_eV"] for row in rows]) * 1000 / atoms
    if len(times) < 3 or not np.isfinite(energies).all():
        return None
    return float(np.polyfit(times, energies - energies[0], 1)[0])


def _write_end(out: Path, atoms: Atoms, row: dict[str, float], result: MDResult) -> None:
    values = {key: _finite(value) for key, value in asdict(result).items()}
    summary = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in (("final.extxyz", _frame_text(atoms, row)), ("result.json", summary)):
        with replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
