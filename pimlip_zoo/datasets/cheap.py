"""Cheap physics by name: the calculators that give weak labels."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple

from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

__all__ = ["Supervisor", "find_supervisor"]


class Supervisor(NamedTuple):
    """A cheap calculator, and what it is called in records of where labels come from."""

    name: str
    """As the user gave it."""
    version: str
    """Package and version that compute it; a changed one makes new labels."""
    make: Callable[[], Calculator]
    """A fresh ASE calculator."""
    charged: bool = True
    """Whether it may take charge and multiplicity into account; False: ions are refused."""


def find_supervisor(
    name: str, *, trust: bool = False, load_run: Callable[[str], Calculator] | None = None
) -> Supervisor:
    """The calculator of that name.

    Args:
        name: ``gfn2`` or ``gfn1`` (tblite), ``emt`` (ASE), ``run:RUN``, or ``MODULE:FACTORY``, a function without
            arguments that returns an ASE calculator.
        trust: whether the name may be that of a function, which is imported and called. Give True for what the user
            or a configuration says, and for what a model file says only when the user trusts the file.
        load_run: makes a calculator from a run folder, for ``run:``.

    Raises:
        InputError: when there is none, the package that computes it is not installed, or it is not trusted.
    """
    if name in ("gfn1", "gfn2"):
        _require("tblite", "pip install 'pimlip-zoo[xtb]'")
        return Supervisor(name, _package("tblite"), lambda: _tblite(name))
    if name == "emt":
        return Supervisor(name, _package("ase"), _emt, charged=False)
    if name.startswith("run:"):
        run = name.removeprefix("run:")
        if load_run is None:
            raise InputError(f"{name} cannot be used here", key="weak.labels.calculator")
        return Supervisor(name, _content_version(run), lambda: load_run(run))
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise InputError(
            f"no cheap calculator is called {name!r}",
            key="weak.labels.calculator",
            mend="gfn2, gfn1, emt, run:RUN, or MODULE:FACTORY of an ASE calculator",
        )
    if not trust:
        raise InputError(
            f"the model names the function {name}, which would be imported and called",
            mend="if you trust whoever made the file: --trust of eval and md, or trust=True in Python",
        )
    return Supervisor(
        name, _package(name.split(":", maxsplit=1)[0].split(".", maxsplit=1)[0]), lambda: _imported(name)
    )


def _tblite(name: str) -> Calculator:
    from ase.calculators.calculator import all_changes
    from tblite.ase import TBLite as Plain

    from pimlip_zoo.datasets.electrons import ELECTRON_KEYS, electrons_of_atoms, give_electrons

    class TBLite(Plain):
        """Takes charge and multiplicity from ``atoms.info``, too; by itself it sums initial charges and moments."""

        def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
            return super().check_state(self._stated(atoms), tol)

        def calculate(
            self,
            atoms: Atoms | None = None,
            properties: list[str] | None = None,
            system_changes: Sequence[str] = all_changes,
        ) -> None:
            super().calculate(None if atoms is None else self._stated(atoms), properties, [*system_changes])

        @staticmethod
        def _stated(atoms: Atoms) -> Atoms:
            if not ELECTRON_KEYS.keys() & atoms.info.keys():
                return atoms
            atoms = atoms.copy()
            give_electrons(atoms, electrons_of_atoms(atoms)._asdict())
            return atoms

    return TBLite(method={"gfn1": "GFN1-xTB", "gfn2": "GFN2-xTB"}[name], verbosity=0)


def _emt() -> Calculator:
    from ase.calculators.emt import EMT

    return EMT()


def _imported(name: str) -> Calculator:
    module, _, factory = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in factory.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(str(error), key="weak.labels.calculator", mend=f"is {name} importable?") from error
    try:
        calculator: Calculator = found()  # type: ignore[operator]
    except Exception as error:
        raise InputError(
            f"{name} fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            key="weak.labels.calculator",
            mend="it has to be a function without arguments that returns an ASE calculator",
        ) from error
    if not hasattr(calculator, "get_potential_energy"):
        raise InputError(
            f"{name} returns {type(calculator).__name__}, which is no ASE calculator",
            key="weak.labels.calculator",
        )
    return calculator


def _require(package: str, mend: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{package} is not installed", key="weak.labels.calculator", mend=mend)


def _package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def _content_version(run: str) -> str:
    """A run is what its checkpoints hold."""
    import hashlib
    from pathlib import Path

    path = Path(run)
    files = [path] if path.is_file() else sorted(path.glob("checkpoints/best.ckpt"))
    if not files:
        raise InputError("no such run", file=run, key="weak.labels.calculator")
    return "run " + hashlib.sha256(files[0].read_bytes()).hexdigest()[:16]
