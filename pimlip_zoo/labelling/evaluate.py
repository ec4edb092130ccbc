"""One structure, one calculator: what comes out, checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.labelling.calculators import Labeller
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.structures import Structure, as_atoms

if TYPE_CHECKING:
    from ase import Atoms

_STEP = 0.01
"""Å, of the structures by which energies and forces are compared."""
_SMALL = 0.1
"""eV/Å: a slope that is too small to be compared."""


def compute(structure: Structure, labeller: Labeller, folder: Path | None = None) -> dict[str, Any]:
    """Energy (eV), forces (eV/Å) and stress (eV/Å³) of a structure, as far as the calculator has them.

    Args:
        structure: with charge and spin.
        labeller: the calculator.
        folder: where a calculator that writes files puts them, unless it has a folder of its own, and where one with a
            ``progress_folder`` keeps what it has of a long calculation; removed after a success, kept after a failure.

    Returns:
        ``energy``, ``forces``, ``stress`` ((3, 3), where the cell has a volume) and ``parts`` of the energy, as plain
        numbers and lists.

    Raises:
        CalculationError: when the calculator fails, did not converge, or returns what is no result.
    """
    _check_charge(structure, labeller)
    atoms = as_atoms(structure)
    try:
        calculator = labeller.make(atoms)
        atoms.calc = calculator
        own = folder is not None and _writes_here(calculator)
        if own:
            assert folder is not None
            folder.mkdir(parents=True, exist_ok=True)
            # FileIOCalculator makes text of it, GenericFileIOCalculator needs a Path. CP2K has little room for a name.
            calculator.directory = folder if input_writer(calculator) else Path(os.path.relpath(folder))
        if hasattr(calculator, "progress_folder"):
            calculator.progress_folder = folder
        can = tuple(getattr(calculator, "implemented_properties", ("energy", "forces")))
        wanted = [name for name in ("energy", "forces") if name in can]
        if "stress" in can and structure.frame.pbc.all():
            wanted.append("stress")
        calculator.calculate(atoms, wanted, ["positions", "numbers", "cell", "pbc"])
        results = {name: calculator.results[name] for name in wanted if name in calculator.results}
    except (CalculationError, InputError, MemoryError):
        raise
    except Exception as error:
        raise CalculationError(reason_of(error)) from error
    if getattr(calculator, "converged", None) is False:
        raise CalculationError("the SCF did not converge")
    parts = calculator.results.get("parts")
    result = plain_result(results, len(atoms)) | ({"parts": parts} if parts else {})
    if folder is not None and (own or hasattr(calculator, "progress_folder")):
        shutil.rmtree(folder, ignore_errors=True)
    return result


def plain_result(results: dict[str, Any], count: int) -> dict[str, Any]:
    """Results as numbers and lists, refused where they are not finite or not those of so many atoms.

    Args:
        results: what a calculator says, in ASE's units and conventions.
        count: N.

    Raises:
        CalculationError: naming what is wrong.
    """
    if results.get("energy") is None:
        raise CalculationError("there is no energy")
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "energy": ((), (1,)),
        "forces": ((count, 3),),
        "stress": ((6,), (3, 3)),
    }
    plain: dict[str, Any] = {}
    for name, allowed in shapes.items():
        if results.get(name) is None:
            continue
        try:
            value = np.asarray(results[name])
            if value.dtype.kind not in "iuf":
                raise TypeError(f"it is {value.dtype}")  # noqa: TRY301
            value = value.astype(np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise CalculationError(f"{name} is no number") from error
        if value.shape not in allowed:
            raise CalculationError(f"{name} has shape {value.shape}, the structure has {count} atoms")
        if not np.isfinite(value).all():
            raise CalculationError(f"{name} is not finite")
        if name == "energy":
            plain[name] = float(value.reshape(()))
        elif name == "stress" and value.shape == (6,):
            plain[name] = value[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3).tolist()
        else:
            plain[name] = value.tolist()
    return plain


def force_factor(structure: Structure, labeller: Labeller, forces: NDArray[np.float64]) -> float | None:
    """How much the energy falls along the forces, over what they say: 1 where the units belong together.

    Two further calculations, central differences along the forces. None where the forces are too small to tell.

    Args:
        structure: that was computed.
        labeller: the calculator.
        forces: (N, 3) that it gave.

    Raises:
        CalculationError: when it fails on a displaced structure.
    """
    from dataclasses import replace

    largest = float(np.abs(forces).max(initial=0.0))
    if largest == 0.0:
        return None
    direction = forces / largest
    energies = []
    for sign in (1.0, -1.0):
        frame = structure.frame
        moved = replace(frame, positions=frame.positions + sign * _STEP * direction)
        energies.append(float(compute(replace(structure, frame=moved), labeller)["energy"]))
    slope = (energies[1] - energies[0]) / (2 * _STEP)
    said = float(np.sum(forces * direction))
    return slope / said if max(abs(slope), said) > _SMALL else None


def input_writer(calculator: Any) -> Callable[[Atoms, list[str]], None] | None:
    """What writes the input files of a calculator's program, into its ``directory``; None where there is nothing.

    ASE has no common class: ``FileIOCalculator`` and ``Vasp`` have ``write_input``, ``GenericFileIOCalculator`` has
    ``write_inputfiles``.
    """
    return getattr(calculator, "write_inputfiles", None) or getattr(calculator, "write_input", None)


def _writes_here(calculator: Any) -> bool:
    """Whether a calculator writes files, and into the folder that the command was called in.

    One that writes no input by itself, such as CP2K through its shell, has a name for its files: the ``prefix``.
    """
    writes = input_writer(calculator) is not None or getattr(calculator, "prefix", None)
    return bool(writes) and Path(getattr(calculator, "directory", "")).resolve() == Path.cwd()


def _check_charge(structure: Structure, labeller: Labeller) -> None:
    if labeller.takes_charge:
        return
    if structure.charge or (structure.multiplicity or 1) != 1:
        raise CalculationError(f"{labeller.name} knows neither charge nor spin, and the structure has them")
