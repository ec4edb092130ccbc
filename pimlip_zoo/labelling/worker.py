"""The process that calculates: its work is a calculator, each of its jobs a structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.structures import Structure
from pimlip_zoo.processes import Reply, refusal, serve


def as_message(structure: Structure) -> dict[str, Any]:
    """A structure in plain numbers and lists."""
    frame = structure.frame
    return {
        "numbers": frame.numbers.tolist(),
        "positions": frame.positions.tolist(),
        "cell": np.asarray(frame.cell).tolist(),
        "pbc": np.asarray(frame.pbc).tolist(),
        "charge": structure.charge,
        "multiplicity": structure.multiplicity,
        "charges": None if structure.charges is None else structure.charges.tolist(),
        "moments": None if structure.moments is None else structure.moments.tolist(),
    }


def from_message(message: dict[str, Any]) -> Structure:
    """The structure of a message."""
    frame = Frame(
        numbers=np.array(message["numbers"], dtype=np.int64),
        positions=np.array(message["positions"], dtype=np.float64).reshape(-1, 3),
        cell=np.array(message["cell"], dtype=np.float64),
        pbc=np.array(message["pbc"], dtype=bool),
    )
    charges, moments = (
        None if message[name] is None else np.array(message[name], dtype=np.float64)
        for name in ("charges", "moments")
    )
    return Structure(frame, message["charge"], message["multiplicity"], charges, moments)


def main() -> None:
    """Answer structures until there are no more."""

    def prepare(about: dict[str, Any]) -> tuple[dict[str, Any], Reply]:
        from pimlip_zoo.labelling.calculators import find_labeller
        from pimlip_zoo.weak_labels.calculators import work_for

        work_for(about["calculator"])
        labeller = find_labeller(about["calculator"], memory=about["memory"])
        said = {"version": labeller.version, "level": labeller.level, "known": labeller.known}
        return said, lambda message: reply(message, labeller, Path(about["folder"]))

    serve(prepare)


def reply(message: dict[str, Any], labeller: Any, folder: Path) -> dict[str, Any]:
    """The answer to a structure: ``result``, ``failure`` or ``refused``."""
    from pimlip_zoo.labelling.evaluate import compute, force_factor

    structure = from_message(message["structure"])
    try:
        result = compute(structure, labeller, folder / structure.key())
        if message.get("compare") and "forces" in result:
            result["force_factor"] = force_factor(structure, labeller, np.array(result["forces"]))
    except CalculationError as error:
        return {"failure": reason_of(error)}
    except InputError as error:
        return refusal(error)
    except MemoryError:
        return {"failure": "not enough memory"}
    except Exception as error:  # noqa: BLE001 - each calculator has its own way of failing
        return {"failure": reason_of(error)}
    return {"result": result}
