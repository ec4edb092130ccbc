"""How long dynamics with a run of a curve last before they leave physics: stability as a number beside errors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.errors import InputError
from pimlip_zoo.files import read_json, write_json

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

FILE = "stability.json"
STARTS = 3
_TIMESTEP = 0.5  # fs


def measure_stability(
    run: Path,
    tests: Sequence[str],
    *,
    ps: float,
    calculator: Calculator,
    temperature: float = 300.0,
) -> None:
    """Run dynamics at constant temperature from structures of each test set; the mean time is kept in the run folder.

    A simulation ends where :class:`~pimlip_zoo.deploy.stability.StabilityMonitor` finds something, or after ``ps``.
    What was measured with the same settings is not repeated.

    Args:
        run: a run folder.
        tests: DATA specifications; three structures of each are started from.
        ps: longest time of each.
        calculator: of the run.
        temperature: K.

    Raises:
        InputError: for a time that is no time.
    """
    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.deploy.md import MDSettings, run_md

    if not ps > 0:
        raise InputError(f"{ps} ps is no time", key="--stability", hint="give a number > 0")
    settings = settings_of(ps, temperature)
    known = _read(run)
    times = dict(known.get("times", {})) if known.get("settings") == settings else {}
    steps = max(1, round(1e3 * ps / _TIMESTEP))
    for spec in tests:
        if spec in times:
            continue
        frames = load_frames(spec)
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(STARTS, len(frames))).astype(int))
        lasted = []
        for seed, index in enumerate(chosen.tolist()):
            atoms = frame_to_atoms(frames[index])
            atoms.calc = calculator
            of_run = MDSettings(temperature=temperature, steps=steps, timestep=_TIMESTEP, seed=seed)
            with tempfile.TemporaryDirectory(prefix="pimlip-stability-") as scratch:
                result = run_md(atoms, of_run, Path(scratch) / "md")
            lasted.append(ps if result.stable else min(ps, 1e-3 * max(result.time_fs, _TIMESTEP)))
        times[spec] = lasted
        write_json(run / FILE, {"settings": settings, "times": times})


def settings_of(ps: float, temperature: float) -> dict[str, float]:
    """What times can be compared by: their longest, ps, and the temperature, K, beside the time step."""
    return {"ps": ps, "temperature": temperature, "timestep": _TIMESTEP}


def stable_ps(runs: Sequence[Path], settings: Mapping[str, float] | None = None) -> list[dict[str, float]]:
    """The mean time in ps on each test set, of runs that are compared.

    Args:
        runs: run folders.
        settings: of :func:`settings_of`; those of all the runs if not given, and no time at all where they differ.

    Returns:
        For each run times by test set, of the runs that were measured so.
    """
    found = [_read(run) for run in runs]
    if settings is None:
        measured = [each["settings"] for each in found if each.get("times")]
        settings = measured[0] if measured and all(each == measured[0] for each in measured) else {}
    return [
        {spec: float(np.mean(times)) for spec, times in each["times"].items() if times}
        if each.get("settings") == settings and "times" in each
        else {}
        for each in found
    ]


def _read(run: Path) -> dict[str, Any]:
    path = run / FILE
    return read_json(path, dict) if path.exists() else {}
