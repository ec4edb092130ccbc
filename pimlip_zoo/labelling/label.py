"""Labels for structures: computed, kept as they come, written as one file."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo import outputs
from pimlip_zoo.datasets.frame import EVEN, Frame
from pimlip_zoo.datasets.frames import geometry_bytes
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.writing import write_frames
from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.labelling.evaluate import plain_result
from pimlip_zoo.labelling.executor import ExecutorPool
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.journal import Journal, journal_path, opened_journal
from pimlip_zoo.labelling.processes import Limits, Outcome, Pool
from pimlip_zoo.labelling.structures import Structure

log = logging.getLogger("pimlip_zoo")

Progress = Callable[[Outcome, int, int], None]
"""Called with each outcome, how many are done, and of how many."""
_TOLERANCE = 0.1
_LOOKS = 5
"""Structures at which energies and forces are compared, at most; the first with forces that are not small decides."""
_FORMATS = (".lmdb", ".extxyz", ".xyz")


@dataclass(frozen=True)
class Failure:
    """A structure without a label."""

    place: str
    reason: str


@dataclass(frozen=True)
class Labelling:
    """What became of the structures."""

    out: Path | None
    """The file of labels; None where not a single structure has one."""
    labelled: int
    computed: int
    """Of them and the failures, in this call; the others were there."""
    failures: tuple[Failure, ...]
    failed_file: Path | None
    """The structures that failed, with their reasons."""


def label(
    structures: Sequence[Structure],
    out: Path,
    calculator: str,
    *,
    workers: int = 1,
    limits: Limits | None = None,
    level: str | None = None,
    retry: bool = False,
    overwrite: bool = False,
    compare: bool | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Labelling:
    """Compute what is not there yet, and write it.

    Results are kept in ``OUT.journal`` from the moment they are known; called again, also after a kill and with more
    structures, only what is missing is computed. Structures that failed stand in ``OUT.failed.extxyz`` with the reason.

    Args:
        structures: what to label.
        out: ``.lmdb``, ``.extxyz`` or ``.xyz``.
        calculator: see :func:`~pimlip_zoo.labelling.calculators.find_labeller`.
        workers: calculations at a time.
        limits: of each of them.
        level: of theory, recorded; the calculator's own name for it if not given.
        retry: compute again what failed.
        overwrite: replace a file that is there.
        compare: find out with two further calculations whether energies and forces belong together; None: when the
            calculator is not one of this package.
        progress: told of each outcome.
        executor: computes, in place of processes of our own; limits are then its business.

    Raises:
        InputError: for a calculator that cannot be used, a place that cannot be written, or forces that do not belong
            to the energies.
    """
    check_output(out, overwrite=overwrite)
    scratch = out.with_name(out.name + ".scratch")
    if executor is not None and limits not in (None, Limits()):
        raise InputError("are the executor's business", key="limits", hint="set them where it is configured")
    with (
        Pool(calculator, workers=workers, limits=limits, folder=scratch)
        if executor is None
        else ExecutorPool(calculator, executor, scratch)
    ) as pool:
        about = {
            "name": calculator,
            "version": str(pool.about["version"]),
            "level": level or str(pool.about["level"]),
        }
        with opened_journal(out, about) as journal:
            places = _places(structures)
            known = journal.results
            check_written(out, structures, journal, about, overwrite=overwrite)
            open_ = [
                (indices[0], structures[indices[0]])
                for key, indices in places.items()
                if key not in known or (retry and "failure" in known[key])
            ]
            total = len(open_)
            keys = [structure.key() for structure in structures]
            computed = 0
            wanted = compare if compare is not None else not pool.about["known"]
            looks = wanted and not any("force_factor" in entry for entry in known.values())
            while open_:
                # One by itself as long as it is looked at closely: what is wrong with it would be wrong with all.
                part, open_ = (open_[:1], open_[1:]) if looks else (open_, [])
                for outcome in pool.run(part, compare=looks):
                    computed += 1
                    looks = not _keep(journal, keys[outcome.index], outcome) and looks and computed < _LOOKS
                    if progress is not None:
                        progress(outcome, computed, total)
            return finish(structures, keys, journal, out, about, scratch, computed)


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Whether labels can be written there.

    Raises:
        InputError: for another format, or a file that no labelling wrote.
    """
    if out.suffix not in _FORMATS:
        raise InputError("is no format for labels", file=out, hint=f"name it {', '.join(_FORMATS)}")
    if out.is_dir():
        raise InputError("is a folder", file=out, hint="name a file")
    if out.exists() and not overwrite and not journal_path(out).exists():
        raise InputError("is there already", file=out, hint="name another file, or give --overwrite")
    outputs.check_output(out, outputs.STORE if out.suffix == ".lmdb" else outputs.ANY, key="--out")


def check_written(
    out: Path, structures: Sequence[Structure], journal: Journal, about: dict[str, str], *, overwrite: bool
) -> None:
    """Refuse to replace a file by one that lacks what it has.

    Args:
        out: the file of labels, if it is there.
        structures: those whose labels will be written.
        journal: of the file.
        about: name, version and level of the calculator.
        overwrite: replace it all the same.

    Raises:
        InputError: when it has been changed, or is of other structures.
    """
    if overwrite or not out.exists():
        return
    will: dict[bytes, list[Frame]] = {}
    for structure in structures:
        entry = journal.results.get(structure.key(), {})
        if "result" in entry:
            frame = labelled_frame(structure, _checked(entry["result"], structure, journal.path), about)
            will.setdefault(geometry_bytes(frame), []).append(frame)
    further: set[str] = set()
    written = load_frames(str(out), not_kept=further)
    if further:
        raise InputError(
            f"has {', '.join(sorted(further))}, which would not be in it any more",
            file=out,
            hint="name another file, or give --overwrite",
        )
    alike = [will.get(geometry_bytes(frame)) for frame in written]
    lost = sum(
        not (same and _has_all_of(same.pop(), frame)) for same, frame in zip(alike, written, strict=True)
    )
    if lost:
        raise InputError(
            f"has {lost} of {len(written)} structures whose labels or notes would not be in it any more",
            file=out,
            hint="give all structures, name another file, or give --overwrite",
        )


def _has_all_of(new: Frame, old: Frame) -> bool:
    """Whether a frame of the same geometry has the labels, the weights and the notes of a file's frame."""
    same = old.energy is not None and math.isclose(
        float(new.energy or 0.0), old.energy, rel_tol=1e-12, abs_tol=1e-6
    )
    before, now = old.initial or {}, new.initial or {}
    arrays = [
        (new.forces, old.forces),
        (new.stress, old.stress),
        *((now.get(key), before[key]) for key in before),
    ]
    weights = (old.weight, old.label_weights) in ((1.0, EVEN), (new.weight, new.label_weights))
    return (
        same
        and weights
        and all(
            there is None or (have is not None and np.allclose(have, there, rtol=1e-7, atol=1e-6))
            for have, there in arrays
        )
        and all(str(new.info.get(key)) == str(value) for key, value in old.info.items())
    )


def failures_path(out: Path) -> Path:
    """Where structures without a label are written, or none are left."""
    return out.with_name(out.name + ".failed.extxyz")


def labelled_frame(structure: Structure, result: dict[str, Any], about: dict[str, str]) -> Frame:
    """A structure with the labels of a result, and where they are from."""
    stress = result.get("stress")
    info = {
        **structure.frame.info,
        "calculator": about["name"][-200:],
        "calculator_version": about["version"],
        "level_of_theory": about["level"][-200:],
        "charge": structure.charge,
    }
    if structure.multiplicity is not None:
        info["multiplicity"] = structure.multiplicity
    for name, value in (result.get("parts") or {}).items():
        info[f"part_{name}"] = float(value)
    return replace(
        structure.frame,
        energy=float(result["energy"]),
        forces=np.array(result["forces"], dtype=np.float64) if "forces" in result else None,
        stress=np.array(stress, dtype=np.float64) if stress is not None else None,
        info=info,
    )


def write_labels(frames: Sequence[Frame], out: Path, about: dict[str, str]) -> None:
    """Write labelled frames, in eV and Å, as a store or extended XYZ."""
    meta = {
        "level_of_theory": about["level"],
        "calculator": about["name"],
        "calculator_version": about["version"],
    }
    write_frames(out, frames, meta)


def _places(structures: Sequence[Structure]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, structure in enumerate(structures):
        places.setdefault(structure.key(), []).append(index)
    return places


def _keep(journal: Journal, key: str, outcome: Outcome) -> bool:
    """Write an outcome down; whether it says that energies and forces belong together."""
    entry: dict[str, Any] = {"seconds": round(outcome.seconds, 3)}
    if outcome.result is None:
        journal.add(key, {"failure": outcome.failure, **entry})
        return False
    factor = outcome.result.pop("force_factor", None)
    if factor is not None:
        if abs(factor - 1.0) > _TOLERANCE:
            raise InputError(
                f"energies change by {factor:.4g} of what the forces say: the units do not belong together",
                key="--calculator",
                hint="ASE calculators return eV and eV/Å; --no-compare if you know better",
            )
        entry["force_factor"] = round(factor, 5)
    journal.add(key, {"result": outcome.result, **entry})
    return factor is not None


def _checked(result: dict[str, Any], structure: Structure, path: Path) -> dict[str, Any]:
    """A result as a journal has it, when it can be one of the structure."""
    try:
        parts = {str(name): float(value) for name, value in (result.get("parts") or {}).items()}
        return plain_result(result, len(structure.frame.numbers)) | ({"parts": parts} if parts else {})
    except (CalculationError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"is damaged: its entry of {structure.place} is no result ({reason_of(error)})",
            file=path,
            hint="move it away, and everything is computed anew",
        ) from error


def finish(
    structures: Sequence[Structure],
    keys: Sequence[str],
    journal: Journal,
    out: Path,
    about: dict[str, str],
    scratch: Path | None,
    computed: int,
    missing: Mapping[str, str] | None = None,
) -> Labelling:
    """Write the labels and the failures of a journal.

    Args:
        structures: in the order of the file.
        keys: theirs.
        journal: with an entry for each key that is not missing.
        out: the file of labels.
        about: name, version and level of the calculator.
        scratch: removed when nothing failed.
        computed: entries that are new.
        missing: reasons of keys without an entry, by key.
    """
    frames, failures, failed = [], [], []
    for structure, key in zip(structures, keys, strict=True):
        entry = journal.results.get(key) or {"failure": (missing or {})[key]}
        if "result" in entry:
            result = _checked(entry["result"], structure, journal.path)
            frames.append(labelled_frame(structure, result, about))
            continue
        reason = str(entry["failure"])
        failures.append(Failure(structure.place, reason))
        failed.append(replace(structure.frame, info={**structure.frame.info, "failure": reason[:250]}))
    if frames:
        write_labels(frames, out, about)
    failed_file = failures_path(out)
    if failed:
        write_frames(failed_file, failed)
    else:
        failed_file.unlink(missing_ok=True)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return Labelling(
        out if frames else None, len(frames), computed, tuple(failures), failed_file if failed else None
    )
