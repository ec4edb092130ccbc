"""Which structures of a program's output are of a self-consistent field that did not converge.

Programs write energies and forces of such a step as of any other, and ASE reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pimlip_zoo.datasets.readers.scan import matches, opened


@dataclass(frozen=True)
class Program:
    """What stands in a program's output."""

    signature: bytes
    begins: bytes
    """At the beginning of every SCF, or of each of its iterations."""
    converged: bytes
    """Only when it converged."""
    failed: tuple[bytes, ...]
    """Only when it did not."""


PROGRAMS = {
    "ORCA": Program(
        b"* O   R   C   A *",
        b"SCF ITERATIONS",
        b"SCF CONVERGED AFTER",
        (b"SCF NOT CONVERGED AFTER", b"not fully converged"),
    ),
    "CP2K": Program(
        b"CP2K|",
        b"SCF WAVEFUNCTION OPTIMIZATION",
        b"SCF run converged",
        (b"SCF run NOT converged", b"SCF loop FAILED to converge"),
    ),
    "VASP": Program(
        b" vasp.",
        b"- Iteration ",
        b"aborting loop because EDIFF is reached",
        (b"EDIFF was not reached",),
    ),
    "Quantum ESPRESSO": Program(
        b"Program PWSCF",
        b"Self-consistent Calculation",
        b"convergence has been achieved",
        (b"convergence NOT achieved",),
    ),
    "FHI-aims": Program(
        b"Invoking FHI-aims",
        b"Begin self-consistency loop",
        b"Self-consistency cycle converged",
        (b"SELF-CONSISTENCY CYCLE DID NOT CONVERGE",),
    ),
}
"""What outputs say, by program."""

_HEAD = 1 << 22
"""Bytes within which a program names itself."""
_STEP_OF_VASP = b"FREE ENERGIE OF THE ION-ELECTRON SYSTEM"
"""Once in every ionic step of an OUTCAR, behind its SCF; ASE makes a structure of each."""
_XML = re.compile(
    rb'(?P<begin><calculation>)|(?P<step><scstep>)|(?P<stop></scstep>)|(?P<done><varray name="forces")|'
    rb'name="EDIFF"[^>]*>\s*(?P<least>[-+.\deE]+)\s*<|<i name="e_fr_energy">\s*(?P<energy>[-+.\deE]+)\s*<'
)
_PRINTED = 1.5e-8
"""eV, by which two energies may differ that are printed with eight digits."""


@dataclass
class Unconverged:
    """What an output says of its SCFs."""

    program: str
    steps: set[int] = field(default_factory=set)
    """Numbers of the structures, from 0, that are of one that did not converge."""
    unknown: bool = False
    """The output does not tell."""
    others: int = 0
    """How many did not converge of which it is not known to which structure they belong."""


def unconverged_in(path: str | Path) -> Unconverged | None:
    """What did not converge in an output of a program that is known; None for every other file.

    Structures can be told apart in ``OUTCAR`` and ``vasprun.xml``. An output that speaks of no convergence at all, of
    force fields and the like, has nothing that did not converge.

    Args:
        path: a file, which may be compressed as ASE reads it; its size has been checked.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: where it cannot be read.
    """
    with opened(path) as file:
        head = file.read(_HEAD)
    if b"<modeling" in head[:1024]:
        return _of_xml(matches(path, _XML))
    named = [(head.find(program.signature), name) for name, program in PROGRAMS.items()]
    known = [entry for entry in named if entry[0] >= 0]
    if not known or b"\0" in head[:1024]:
        return None
    name = min(known)[1]
    program = PROGRAMS[name]
    marks = {b"begins": program.begins, b"converged": program.converged, b"step": _STEP_OF_VASP}
    parts = [b"(?P<%s>%s)" % (key, re.escape(mark)) for key, mark in marks.items()]
    parts.append(b"(?P<failed>%s)" % b"|".join(map(re.escape, program.failed)))
    found = matches(path, re.compile(b"|".join(parts)))
    return _of_outcar(found) if name == "VASP" else _of_text(name, found)


def _of_outcar(found: Iterator[re.Match[bytes]]) -> Unconverged:
    number, states, seen = 0, {}, set()
    for match in found:
        kind = match.lastgroup or ""
        if kind != "step":
            seen.add(kind)
            continue
        states[number] = seen
        number, seen = number + 1, set()
    says = any("converged" in state for state in states.values())
    wrong = {
        k for k, state in states.items() if "failed" in state or (says and state and "converged" not in state)
    }
    return Unconverged("VASP", wrong)


def _of_text(name: str, found: Iterator[re.Match[bytes]]) -> Unconverged:
    return Unconverged(name, others=sum(match.lastgroup == "failed" for match in found))


def _of_xml(found: Iterator[re.Match[bytes]]) -> Unconverged:
    """``vasprun.xml`` does not say it: the last step of an SCF has to have changed the energy by less than EDIFF.

    The last calculation of a run that was killed may have all of its labels and no end. Steps behind the forces are of
    the response to fields and displacements.
    """
    least: float | None = None
    calculations: list[list[float]] = []
    inside = done = False
    for match in found:
        kind = match.lastgroup
        if kind == "least":
            least = _number(match["least"])
        elif kind == "begin":
            calculations.append([])
            done = False
        elif kind == "done":
            done = True
        elif kind == "step" and calculations and not done:
            inside = True
            calculations[-1] = [*calculations[-1][-1:], float("nan")]  # of the last two steps
        elif kind == "stop":
            inside = False
        elif kind == "energy" and inside and calculations:
            calculations[-1][-1] = _number(match["energy"])
    if least is None:
        return Unconverged("VASP", unknown=any(calculations))
    wrong = {
        number
        for number, energies in enumerate(calculations)
        if energies and not (len(energies) == 2 and abs(energies[1] - energies[0]) < least + _PRINTED)
    }
    return Unconverged("VASP", wrong)


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
