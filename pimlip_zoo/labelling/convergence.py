"""Whether a program's output says that its last self-consistent field converged.

ASE reads energies and forces of outputs that did not converge as well.
"""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from xml.etree import ElementTree

from pimlip_zoo.datasets.readers.convergence import PROGRAMS
from pimlip_zoo.datasets.readers.scan import OPENERS
from pimlip_zoo.files import expansion_limit, regular_file
from pimlip_zoo.labelling.failures import CalculationError

_UNREADABLE = (EOFError, OSError, lzma.LZMAError, zlib.error)
_PRINTED = 1.5e-8
"""eV, by which two energies may differ that are printed with eight digits."""


def output_of(path: Path) -> bytes:
    """What ASE reads of an output, which it unpacks where the name ends with ``.gz``, ``.bz2`` or ``.xz``.

    Raises:
        CalculationError: when it is damaged, or a few bytes stand for very many.
        InputError: when there is no such file.
    """
    opener = OPENERS.get(regular_file(path).suffix)
    if opener is None:
        return path.read_bytes()
    limit = expansion_limit(path)
    try:
        with opener(path, "rb") as file:
            content: bytes = file.read(limit + 1)
    except _UNREADABLE as error:
        raise CalculationError(f"{path.name} cannot be unpacked: {error}") from error
    if len(content) > limit:
        raise CalculationError(f"{path.name} unpacks to more than {limit} bytes")
    return content


def check_converged(content: bytes, *, xml: bool = False) -> None:
    """Refuse the output of a known program in which the last SCF did not converge, or was not finished.

    Of programs that are not known, nothing is checked.

    Args:
        content: the output, unpacked.
        xml: ASE reads it as the xml of VASP.

    Raises:
        CalculationError: when it does not say that it converged.
    """
    if xml or (content.lstrip()[:1] == b"<" and b"<modeling" in content):
        _check_vasp_xml(content)
        return
    found = [(content.find(program.signature), program) for program in PROGRAMS.values()]
    known = [(place, program) for place, program in found if place >= 0]
    if not known:
        return
    _, program = min(known, key=lambda entry: entry[0])
    last = content.rfind(program.converged)
    if last < 0 or any(content.find(marker, last) >= 0 for marker in (program.begins, *program.failed)):
        raise CalculationError("the SCF did not converge")


def _check_vasp_xml(content: bytes) -> None:
    """``vasprun.xml`` does not say it: the last step has to have changed the energy by less than EDIFF.

    A run that was told to stop ends after any number of steps.
    """
    try:
        text = content.decode("ISO-8859-1" if b"ISO-8859-1" in content[:200] else "utf-8")
    except UnicodeDecodeError as error:
        raise CalculationError("the xml is in an encoding that VASP does not write") from error
    if "<!ENTITY" in text or "<!DOCTYPE" in text or "\0" in text:
        raise CalculationError("the xml defines entities, which VASP does not")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - nothing in it stands for anything else
    except (ElementTree.ParseError, ValueError) as error:
        raise CalculationError(f"the xml is not complete: {error}") from error
    least = _setting(root, "EDIFF")
    calculations = root.findall("calculation")
    if least is None or not calculations:
        raise CalculationError("the xml does not say whether the SCF converged: EDIFF or steps are missing")
    labelled = takewhile(
        lambda part: part.get("name") != "forces", calculations[-1]
    )  # then come responses to fields
    steps = [part for part in labelled if part.tag == "scstep"]
    energies = _numbers(step.find("energy/i[@name='e_fr_energy']") for step in steps[-2:])
    if len(energies) < 2 or not abs(energies[1] - energies[0]) < least + _PRINTED:
        raise CalculationError("the SCF did not converge")


def _setting(root: ElementTree.Element, name: str) -> float | None:
    """What was computed with, or, without that, what was asked for."""
    for place in ("parameters", "incar", "."):
        values = _numbers(root.findall(f"{place}//i[@name='{name}']"))
        if values:
            return values[-1]
    return None


def _numbers(elements: Iterable[ElementTree.Element | None]) -> list[float]:
    texts = [element.text or "" for element in elements if element is not None]
    return [float(text) for text in texts if re.fullmatch(r"\s*[-+]?[\d.]+([eE][-+]?\d+)?\s*", text)]
