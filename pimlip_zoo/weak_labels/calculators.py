"""Cheap physics by name: the calculators that give weak labels.

A calculator is a function that returns an ASE calculator. Those with a name are registered; another package offers one
through the entry-point group ``pimlip_zoo.calculators``.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from pydantic import PositiveFloat, PositiveInt

from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.registry import Registered, Registry
from pimlip_zoo.section import Section, parse_options
from pimlip_zoo.yaml_file import parse_yaml

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

KEY = "weak.labels.calculator"
RUN, PIN, OF_RUN = "run:", "?content=", "run "
"""How names and versions of runs begin, and what a name is followed by where the content is fixed."""
OTHER_RUN = "is not the run that the model was trained beside"


class CalculatorOptions(Section):
    """The options of a calculator, as in ``NAME?OPTION=VALUE&OPTION=VALUE``."""


@dataclass(frozen=True)
class CalculatorInfo(Registered):
    """A calculator; it is called with the options, each by its name."""

    package: str
    """Which package computes it; its version goes into records of where labels come from."""
    install: str
    """How the package is installed, where it is not there."""
    charged: bool = True
    """Whether it may take charge and multiplicity into account; False: ions are refused."""


CALCULATORS: Registry[CalculatorInfo] = Registry(
    "calculator",
    "pimlip_zoo.calculators",
    own="; further ones are run:RUN, and MODULE:FACTORY of an ASE calculator",
)


def calculator(
    name: str,
    *,
    package: str,
    install: str | None = None,
    options: type[CalculatorOptions] = CalculatorOptions,
    charged: bool = True,
) -> Callable[[Callable[..., Calculator]], Callable[..., Calculator]]:
    """Decorator that makes a function known as a calculator.

    Args:
        name: what users write.
        package: which distribution computes it.
        install: how that is installed; None: ``pip install PACKAGE``.
        options: the type of its options, all of which have defaults; the function takes each by its name.
        charged: whether it looks at the charge and the multiplicity that structures state: ASE's initial charges and
            moments, or ``atoms.info``. Where it does not, ions are refused instead of labelled as if they were neutral.

    Raises:
        InputError: when another one has the name already.
    """
    how = install or f"pip install {package}"
    return CALCULATORS.registering(
        name, lambda function: CalculatorInfo(name, function, options, package, how, charged)
    )


class TBLiteOptions(CalculatorOptions):
    """Options of extended tight binding."""

    accuracy: PositiveFloat = 1.0
    """Factor of all thresholds; smaller is more accurate."""
    electronic_temperature: PositiveFloat = 300.0
    """K, of the occupations."""
    max_iterations: PositiveInt = 250
    """Of the self-consistent field."""


@calculator("gfn2", package="tblite", install="pip install 'pimlip-zoo[xtb]'", options=TBLiteOptions)
def gfn2(**options: Any) -> Calculator:
    """GFN2-xTB, for molecules (J. Chem. Theory Comput. 15, 1652 (2019))."""
    return _tblite("GFN2-xTB", **options)


@calculator("gfn1", package="tblite", install="pip install 'pimlip-zoo[xtb]'", options=TBLiteOptions)
def gfn1(**options: Any) -> Calculator:
    """GFN1-xTB, for molecules and periodic structures (J. Chem. Theory Comput. 13, 1989 (2017))."""
    return _tblite("GFN1-xTB", **options)


def _tblite(method: Literal["GFN1-xTB", "GFN2-xTB"], **options: Any) -> Calculator:
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

    return TBLite(method=method, verbosity=0, **options)


@calculator("emt", package="ase", charged=False)
def emt() -> Calculator:
    """Effective-medium theory, for some metals (Surf. Sci. 366, 394 (1996))."""
    from ase.calculators.emt import EMT

    return EMT()


class CheapCalculator(NamedTuple):
    """A cheap calculator, and what it is called in records of where labels come from."""

    name: str
    """As the user gave it, with those options that are not the default."""
    version: str
    """Package and version that compute it; a changed one makes new labels."""
    make: Callable[[], Calculator]
    """A fresh ASE calculator."""
    charged: bool = True
    """Whether it may take charge and multiplicity into account; False: ions are refused."""
    known: bool = True
    """Whether that is known; False: it is said where structures state them."""
    by_name: bool = True
    """Whether its name says all of it, so that another process makes the same one."""
    all_cores: bool = False
    """Whether one evaluation uses all of them, so that further processes would gain nothing."""


class FindTrained(Protocol):
    """What makes a calculator of a trained potential, which the layers above know."""

    def __call__(self, name: str, *, trust: bool) -> CheapCalculator:
        """See :func:`find_cheap_calculator`."""
        ...


TRAINED: Registry[FindTrained] = Registry("trained calculator", None, ("pimlip_zoo.run_calculator",))
"""By what names begin with."""


def find_cheap_calculator(name: str, *, trust: bool = False) -> CheapCalculator:
    """The calculator of that name.

    Args:
        name: a registered one, with options as in ``gfn2?accuracy=0.1``; ``run:RUN``, or what :func:`pinned` makes of
            it; or ``MODULE:FACTORY``, a function without arguments that returns an ASE calculator.
        trust: whether the name may be that of a function, which is imported and called. Give True for what the user
            or a configuration says, and for what a model file says only when the user trusts the file.

    Raises:
        InputError: when there is none, the package that computes it is not installed, or it is not trusted.
    """
    if name.startswith(RUN):
        return TRAINED.get(RUN)(name, trust=trust)
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        return _registered(name)
    if not trust:
        raise InputError(
            f"the model names the function {name}, which would be imported and called",
            hint="if you trust whoever made the file: --trust of eval and md, or trust=True in Python",
        )
    return CheapCalculator(
        name,
        package_version(name.split(":", maxsplit=1)[0].split(".", maxsplit=1)[0]),
        lambda: _imported(name),
        known=False,
        by_name=False,
    )


def _registered(text: str) -> CheapCalculator:
    name, _, given = text.partition("?")
    info = CALCULATORS.get(name, key=KEY)
    values: dict[str, Any] = {}
    for part in given.split("&") if given else ():
        option, separator, value = part.partition("=")
        if not separator:
            raise InputError(f"{part!r} is no option", key=KEY, hint=f"write {name}?OPTION=VALUE")
        values[option] = parse_yaml(value, key=KEY)
    options = parse_options(info.options, values, KEY)
    known_as = package_version(info.package)
    if importlib.util.find_spec(info.package.replace("-", "_")) is None and known_as == info.package:
        raise InputError(f"{info.package} is not installed", key=KEY, hint=info.install)
    chosen = options.model_dump(mode="json", exclude_defaults=True)
    full = "&".join(f"{key}={value}" for key, value in sorted(chosen.items()))

    def make() -> Calculator:
        try:
            return info.make(**options.model_dump())
        except ImportError as error:
            raise InputError(
                f"{info.package} cannot be imported: {reason_of(error)}", key=KEY, hint=info.install
            ) from error

    return CheapCalculator(f"{name}?{full}" if full else name, known_as, make, charged=info.charged)


@contextmanager
def importing_from_here() -> Iterator[None]:
    """Modules of the working folder can be imported, after all that is installed.

    For functions that the user names, and nothing else: a data set may bring a file that is called like a package.
    """
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(here)
        sys.path.reverse()


def work_for(name: str) -> None:
    """Let a process that works for this calculator alone find modules of the working folder, where it is a function's.

    Such a calculator may import what it needs when it calculates.
    """
    if ":" in name and not name.startswith(("run:", "pyscf:")):
        sys.path.append(str(Path.cwd()))


def import_factory(name: str, key: str) -> Callable[..., object]:
    """The function ``MODULE:FACTORY``, which may be in the working folder.

    Raises:
        InputError: of the key, when it cannot be imported or is no function.
    """
    module, _, path = name.partition(":")
    try:
        with importing_from_here():
            found: object = reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(reason_of(error), key=key, hint=f"is {name} importable from here?") from error
    except Exception as error:
        raise InputError(f"{module} cannot be imported: {reason_of(error)}", key=key) from error
    if not callable(found):
        raise InputError(f"{name} is no function", key=key, hint="it has to return an ASE calculator")
    return found


def as_calculator(made: object, name: str, key: str) -> Calculator:
    """What a factory of that name returned.

    Raises:
        InputError: of the key, when it is no ASE calculator.
    """
    if not hasattr(made, "get_potential_energy"):
        raise InputError(f"{name} returns {type(made).__name__}, which is no ASE calculator", key=key)
    return cast("Calculator", made)


def _imported(name: str) -> Calculator:
    factory = import_factory(name, KEY)
    try:
        with importing_from_here():
            made = factory()
    except Exception as error:
        raise InputError(
            f"{name} fails: {reason_of(error)}",
            key=KEY,
            hint="it has to be a function without arguments that returns an ASE calculator",
        ) from error
    return as_calculator(made, name, KEY)


def package_version(name: str) -> str:
    """Such as ``tblite 0.4.0``; the name alone where it is not installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def pinned(calculator: CheapCalculator) -> str:
    """The name of a calculator for a model file, which another run under the name of a run does not answer to."""
    if not calculator.name.startswith(RUN):
        return calculator.name
    return f"{calculator.name.partition(PIN)[0]}{PIN}{calculator.version.removeprefix(OF_RUN)}"


def check_pin(calculator: CheapCalculator, kept: str | None) -> None:
    """Refuse a run whose weights are others than those that a model was trained beside.

    Args:
        calculator: as it is now.
        kept: what :func:`pinned` made of it then; None: nothing was kept.

    Raises:
        InputError: naming the run.
    """
    now = pinned(calculator)
    if kept is not None and PIN in kept and now.partition(PIN)[0] == kept.partition(PIN)[0] and now != kept:
        raise InputError(OTHER_RUN, file=calculator.name.removeprefix(RUN), key=KEY)
