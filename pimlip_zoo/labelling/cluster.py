"""For queues: a folder for each structure, a SLURM array that works through them, and the way back.

No dispatcher stands between users and their queue: the folders are plain, and any other way to run them will do.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.files import read_text, regular_file, replacing
from pimlip_zoo.labelling.calculators import Labeller, find_labeller
from pimlip_zoo.labelling.convergence import check_converged, output_of
from pimlip_zoo.labelling.evaluate import input_writer, plain_result
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.journal import entries_of, journal_path, opened_journal
from pimlip_zoo.labelling.label import Labelling, check_output, check_written, finish
from pimlip_zoo.labelling.structures import (
    Structure,
    as_atoms,
    load_structures,
    same_but_rounded,
    structure_text,
)

MANIFEST, SCRIPT, STRUCTURE, RESULT = "manifest.json", "array.slurm", "structure.extxyz", "result.extxyz"
_FORMAT, _VERSION = "pimlip-zoo label folders", 1
_MOVED = 1e-3
"""Å: a structure in an output that differs by more is another one."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    count: int
    natively: str
    """Whether the program's own input files are there, in words."""


def write_folders(
    structures: Sequence[Structure],
    folder: Path,
    calculator: str,
    *,
    seconds: float | None = None,
    memory: float | None = None,
) -> Written:
    """Write ``FOLDER/00000``, ``00001``, ... with ``structure.extxyz`` each, and ``array.slurm``.

    Where the calculator writes input files of a program, these are there, too. The script runs ``pimlip-zoo label`` in
    each folder.

    Args:
        structures: equal ones get one folder.
        folder: must not be there, or be empty.
        calculator: see :func:`~pimlip_zoo.labelling.calculators.find_labeller`.
        seconds: time limit of the script's jobs.
        memory: MB, their memory.

    Raises:
        InputError: for a folder that holds something, or a calculator that cannot be used.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("holds something already", file=folder, key="--write-inputs", hint="name another")
    labeller = find_labeller(calculator, memory=memory)
    unique = {structure.key(): structure for structure in structures}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        natively = 0
        for number, structure in enumerate(unique.values()):
            place = unfinished / f"{number:05d}"
            place.mkdir()
            natively += _native_inputs(structure, labeller, place)
            (place / STRUCTURE).write_text(structure_text(structure), encoding="utf-8")
        script = _script(folder, len(unique), calculator, seconds, memory, natively=bool(natively))
        (unfinished / SCRIPT).write_text(script, encoding="utf-8")
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "calculator": calculator,
            "calculator_version": labeller.version,
            "level": labeller.level,
            "keys": list(unique),
        }
        (unfinished / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")
    said = "with the program's input files" if natively else "this calculator has no input files of its own"
    return Written(len(unique), said)


def read_folders(
    structures: Sequence[Structure],
    folder: Path,
    out: Path,
    calculator: str,
    *,
    level: str | None = None,
    output_file: str | None = None,
    overwrite: bool = False,
) -> Labelling:
    """Collect what was computed in the folders of :func:`write_folders`.

    Args:
        structures: the same as then; others are reported as missing.
        folder: of then.
        out: the file of labels.
        calculator: the same as then.
        level: of theory, recorded; the calculator's own name for it if not given.
        output_file: of the program in each folder, read by ASE, where jobs ran the program by themselves.
        overwrite: replace a file that is there.

    Raises:
        InputError: for a folder that was not written so, or of another calculator.
    """
    check_output(out, overwrite=overwrite)
    manifest = _manifest(folder)
    if manifest["calculator"] != calculator:
        raise InputError(
            f"was written for {manifest['calculator']}, given is {calculator}",
            file=folder,
            key="--calculator",
        )
    about = {
        "name": calculator,
        "version": str(manifest["calculator_version"]),
        "level": level or str(manifest["level"]),
    }
    places = {key: folder / f"{number:05d}" for number, key in enumerate(manifest["keys"])}
    missing: dict[str, str] = {}
    with opened_journal(out, about) as journal:
        before = len(journal.results)
        check_written(out, structures, journal, about, overwrite=overwrite)
        for structure in structures:
            key = structure.key()
            if "result" in journal.results.get(key, {}):
                continue
            if key not in places:
                missing[key] = f"it is not among the structures of {folder}"
                continue
            entry = _entry(structure, key, places[key], output_file, manifest)
            if entry is None:
                missing[key] = "not computed yet"
            elif entry != journal.results.get(key):
                journal.add(key, entry)
        keys = [structure.key() for structure in structures]
        computed = len(journal.results) - before
        return finish(structures, keys, journal, out, about, None, computed, missing)


def _entry(
    structure: Structure, key: str, place: Path, output_file: str | None, manifest: dict[str, Any]
) -> dict[str, Any] | None:
    """What a folder says of its structure; None while there is nothing. What is damaged is a failure."""
    journal = journal_path(place / RESULT)
    try:
        if journal.exists():
            calculator, entries = entries_of(journal)
            for name, given in (("name", manifest["calculator"]), ("level", manifest["level"])):
                if calculator.get(name) != given:
                    raise CalculationError(  # noqa: TRY301
                        f"{journal.name} has the {name} {calculator.get(name)}, the folders were written for {given}"
                    )
            if (entry := entries.get(key) or _of_the_file(structure, place, entries)) is not None:
                if "result" in entry:
                    plain_result(entry["result"], len(structure.frame.numbers))
                return entry
        if output_file is None or not (place / output_file).exists():
            return None
        return {"result": _from_output(structure, regular_file(place / output_file)), "seconds": 0.0}
    except (CalculationError, InputError) as error:
        return {"failure": reason_of(error), "seconds": 0.0}


def _of_the_file(
    structure: Structure, place: Path, entries: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    """The entry of what stands in ``structure.extxyz``, where that is the structure but for rounded digits.

    Earlier versions wrote eight decimals, and charge and spin at the atoms; so do others who write the file anew.
    """
    if not entries or not (place / STRUCTURE).exists():
        return None
    for written in load_structures(str(place / STRUCTURE)):
        if (entry := entries.get(written.key())) is not None and same_but_rounded(structure, written):
            return entry
    return None


def _from_output(structure: Structure, path: Path) -> dict[str, Any]:
    from ase.io import read

    check_converged(output_of(path), xml="vasprun" in path.name or path.name.endswith(".xml"))
    try:
        atoms: Any = read(str(path), index=-1)
    except Exception as error:
        raise CalculationError(f"ASE cannot read {path.name}: {reason_of(error)}") from error
    frame = structure.frame
    if len(atoms) != len(frame.numbers):
        raise CalculationError(f"{path.name} has {len(atoms)} atoms, not {len(frame.numbers)}")
    if (atoms.numbers != frame.numbers).any():
        raise CalculationError(f"{path.name} has other elements, or another order of them")
    if (frame.pbc & ~atoms.pbc).any():
        raise CalculationError(f"{path.name} is not periodic, and the structure is")
    if (moved := _moved(atoms, structure)) > _MOVED:
        raise CalculationError(f"the structure in {path.name} differs by {moved:.3g} Å")
    return plain_result(dict(getattr(atoms.calc, "results", None) or {}), len(atoms))


def _moved(atoms: Any, structure: Structure) -> float:
    """Å, how far the cell or an atom of an output is from where it should be, but for translations and images."""
    frame = structure.frame
    cell, periodic = frame.cell[frame.pbc], atoms.pbc & (np.abs(frame.cell).max(axis=1) > 0)
    change = float(np.abs(atoms.cell[frame.pbc] - cell).max(initial=0.0))
    if change > _MOVED or len(atoms) == 0:
        return change
    moved = atoms.positions - frame.positions
    if periodic.any():  # atoms may have been put back into the cell, each by itself
        moved -= moved[0]
        moved -= np.round(moved @ np.linalg.pinv(frame.cell[periodic])) @ frame.cell[periodic]
    moved -= moved.mean(axis=0)  # programs put molecules where they like
    return float(np.abs(moved).max())


def _native_inputs(structure: Structure, labeller: Labeller, place: Path) -> bool:
    """Write what the calculator's program reads, if it is one that reads files."""
    atoms = as_atoms(structure)
    try:
        calculator: Any = labeller.make(atoms)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{labeller.name} fails: {reason_of(error)}", key="--calculator") from error
    write = input_writer(calculator)
    if write is None:
        return False
    calculator.directory = place
    write(atoms, ["energy", "forces"])
    return True


def _script(
    folder: Path, count: int, calculator: str, seconds: float | None, memory: float | None, *, natively: bool
) -> str:
    lines = ["#!/bin/bash", "#SBATCH --job-name=label", f"#SBATCH --array=0-{count - 1}"]
    if seconds is not None:
        minutes = int(-(-seconds // 60)) + 1
        lines.append(f"#SBATCH --time={minutes // 60:02d}:{minutes % 60:02d}:00")
    if memory is not None:
        lines.append(f"#SBATCH --mem={int(memory * 1.1) + 500}M")
    lines += ["#SBATCH --cpus-per-task=1", ""]
    place = shlex.quote(str(folder.absolute()))
    lines += [
        f"cd {shlex.quote(os.getcwd())} || exit 1",  # noqa: PTH109 - as the shell says it
        f'folder={place}/$(printf %05d "$SLURM_ARRAY_TASK_ID")',
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
    ]
    limits = (f" --time-limit {seconds:g}s" if seconds else "") + (
        f" --memory {memory:g}MB" if memory else ""
    )
    # With -m Python would look for modules in the working folder first.
    beside = Path(sys.executable).with_name("pimlip-zoo")
    command = shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m pimlip_zoo"
    lines.append(
        f'{command} label "$folder/{STRUCTURE}" '
        f'--calculator {shlex.quote(calculator)} -o "$folder/{RESULT}" --retry{limits}'
    )
    if natively:
        lines.append('# or the program itself on its input files: cd "$folder" && srun PROGRAM ...')
    return "\n".join(lines) + "\n"


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(folder / MANIFEST, most=1 << 30))
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise InputError("is of another version", file=folder / MANIFEST)  # noqa: TRY301
        keys = content["keys"]
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise TypeError("the keys are no texts")  # noqa: TRY301
        return {name: content[name] for name in ("calculator", "calculator_version", "level", "keys")}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("was not written by --write-inputs", file=folder, key="--read-outputs") from error
    except Exception as error:
        raise InputError("is damaged", file=folder / MANIFEST) from error
