"""The calculators that label, by name."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pimlip_zoo.errors import InputError
from pimlip_zoo.weak_labels.calculators import (
    CALCULATORS,
    as_calculator,
    find_cheap_calculator,
    import_factory,
    importing_from_here,
    package_version,
)

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

KEY = "--calculator"
_LEVELS = {"gfn1": "GFN1-xTB", "gfn2": "GFN2-xTB", "emt": "EMT"}
_PYSCF = "pyscf:"


class Labeller(NamedTuple):
    """A calculator, and what is recorded of it."""

    name: str
    """As the user gave it."""
    version: str
    """Package and version that compute it."""
    level: str
    """Level of theory."""
    make: Callable[[Atoms], Calculator]
    """The calculator for a structure."""
    known: bool
    """Whether its units are this package's business."""
    takes_charge: bool
    """Whether it can do anything but neutral closed shells."""


def find_labeller(name: str, *, memory: float | None = None) -> Labeller:
    """The calculator of that name, imported and looked at.

    Args:
        name: ``gfn2``, ``gfn1``, ``emt``, ``pyscf:METHOD/BASIS``, or ``MODULE:FACTORY``. The factory is called without
            arguments, or, when it has a parameter, with the structure (ASE atoms, ``info["charge"]`` and
            ``info["multiplicity"]`` among it), and returns an ASE calculator.
        memory: MB that it may use, for those that can be told.

    Raises:
        InputError: when there is none, or what computes it is not installed.
    """
    if name.startswith(_PYSCF):
        return _quantum(name, memory)
    if name.startswith("run:"):
        raise InputError(
            "a trained potential gives no reference labels",
            key=KEY,
            hint="pimlip-zoo distill RUN labels structures with trained potentials",
        )
    if ":" in name:
        return _imported(name)
    further = "; further ones are pyscf:METHOD/BASIS, and MODULE:FACTORY of an ASE calculator"
    CALCULATORS.get(name.partition("?")[0], key=KEY, own=further)
    try:
        found = find_cheap_calculator(name, trust=True)
    except InputError as error:
        raise InputError(error.message, key=KEY, hint=error.hint) from error
    level = _LEVELS.get(name, name)
    one = found.make()
    return Labeller(name, found.version, level, lambda _: one, known=True, takes_charge=found.charged)


def _quantum(name: str, memory: float | None) -> Labeller:
    from pimlip_zoo.labelling.quantum import PySCFCalculator, parse_level

    level = parse_level(name.removeprefix(_PYSCF))
    if importlib.util.find_spec("pyscf") is None:
        raise InputError("pyscf is not installed", key=KEY, hint="pip install 'pimlip-zoo[pyscf]'")
    one = PySCFCalculator(level, memory)
    return Labeller(name, package_version("pyscf"), str(level), lambda _: one, known=True, takes_charge=True)


def _imported(name: str) -> Labeller:
    factory = import_factory(name, KEY)
    takes = _takes_structure(factory)

    def make(atoms: Atoms) -> Calculator:
        with importing_from_here():
            return as_calculator(factory(atoms) if takes else factory(), name, KEY)

    version = package_version(name.partition(":")[0].partition(".")[0])
    return Labeller(name, version, name, make, known=False, takes_charge=True)


def _takes_structure(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
