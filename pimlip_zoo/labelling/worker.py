"""The process that calculates: ``python -m pimlip_zoo.labelling.worker``, fed with lines of JSON.

The first line is about the calculator, each further one is a structure; for each line one comes back. When whoever
feeds it is gone, it ends with everything that it started, a program of a calculator included.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.labelling.failures import CalculationError
from pimlip_zoo.labelling.structures import Structure

__all__ = ["as_message", "from_message", "main", "reply"]


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
    """Answer lines until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what calculators print is no answer
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, lines), daemon=True).start()
    from pimlip_zoo.labelling.calculators import find_labeller

    about = json.loads(lines.get())
    try:
        labeller = find_labeller(about["calculator"], memory=about["memory"])
    except InputError as error:
        _answer(answers, {"refused": {"message": error.message, "key": error.key, "mend": error.mend}})
        return
    except Exception as error:  # noqa: BLE001 - whatever a foreign module does
        _answer(answers, {"refused": {"message": f"{about['calculator']}: {reason_of(error)}"}})
        return
    _answer(
        answers,
        {"version": labeller.version, "level": labeller.level, "known": labeller.known},
    )
    while True:
        _answer(answers, reply(json.loads(lines.get()), labeller, Path(about["folder"])))


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
        return {"refused": {"message": error.message, "key": error.key, "mend": error.mend}}
    except MemoryError:
        return {"failure": "not enough memory"}
    except Exception as error:  # noqa: BLE001 - each calculator has its own way of failing
        return {"failure": reason_of(error)}
    return {"result": result}


def _listen(source: IO[str], lines: queue.Queue[str]) -> None:
    for line in source:
        lines.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)  # the session is this process's own


def _answer(answers: IO[str], content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
