"""Hartree-Fock, density functionals, MP2 and coupled cluster of molecules by PySCF, as an ASE calculator.

The level is one text: ``METHOD/BASIS``, ``METHOD/SMALL:LARGE`` extrapolated to the basis set limit, and
``CCSD(T)/SMALL:LARGE:CORRECTION``, the composite

``E = E_HF(limit) + E_MP2corr(limit) + [E_CCSD(T) - E_MP2](correction basis)``.

Density fitting is used throughout, also in coupled cluster, with the auxiliary basis of the Hartree-Fock exchange, and
core electrons are not correlated, unless options say otherwise.

PySCF: Q. Sun et al., J. Chem. Phys. 153, 024109 (2020).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from numpy.typing import NDArray

from pimlip_zoo.datasets.electrons import electrons_of_atoms
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.files import append, write_text
from pimlip_zoo.labelling.basis_limit import extrapolation, is_basis_name
from pimlip_zoo.labelling.failures import CalculationError

if TYPE_CHECKING:
    from ase import Atoms

_CORRELATED = ("mp2", "ccsd", "ccsd(t)")
_MEMORY = 4000.0  # MB


@dataclass(frozen=True)
class QuantumLevel:
    """A level of theory, and how it is computed."""

    method: str
    """hf, mp2, ccsd, ccsd(t), or the name of a density functional as PySCF knows it."""
    bases: tuple[str, ...]
    """One; two that are extrapolated; with CCSD(T) a third, in which its difference to MP2 is computed."""
    fitting: bool = True
    """Density fitting, with the auxiliary basis that PySCF takes for the exchange in this basis."""
    frozen: bool = True
    """Leave core electrons uncorrelated."""
    grid: int = 3
    """PySCF's level of the grid of functionals, 0 to 9."""
    convergence: float = 1e-10
    """Hartree, of the SCF energy."""
    forces: str = "auto"
    """auto: analytic for Hartree-Fock and functionals, else none; numerical: central differences; none."""
    step: float = 0.005
    """Å, of the central differences."""

    @property
    def correlated(self) -> bool:
        """Whether something follows the SCF."""
        return self.method in _CORRELATED

    @property
    def has_forces(self) -> bool:
        """Whether forces are computed."""
        return self.forces == "numerical" or (self.forces == "auto" and not self.correlated)

    def __str__(self) -> str:
        defaults = QuantumLevel(self.method, self.bases)
        options = [
            f"{option.name}={_said(getattr(self, option.name))}"
            for option in fields(self)[2:]
            if getattr(self, option.name) != getattr(defaults, option.name)
        ]
        text = f"{self.method.upper()}/{':'.join(self.bases)}"
        return f"{text}?{'&'.join(options)}" if options else text


def parse_level(text: str) -> QuantumLevel:
    """What stands behind ``pyscf:``.

    Raises:
        InputError: for a text that is none, an unknown option, or bases that do not go together.

    >>> parse_level("PBE/def2-svp").has_forces
    True
    >>> str(parse_level("ccsd(t)/cc-pvtz:cc-pvqz:cc-pvdz"))
    'CCSD(T)/cc-pvtz:cc-pvqz:cc-pvdz'
    """
    name, _, query = text.strip().partition("?")
    method, slash, basis = name.partition("/")
    bases = tuple(part.lower() for part in basis.split(":"))
    if not slash or not re.fullmatch(r"[\w()+,*.-]+", method) or not all(map(is_basis_name, bases)):
        raise InputError(
            f"{text!r} is no level of theory",
            key="pyscf",
            hint="write METHOD/BASIS, as pyscf:PBE/def2-svp or 'pyscf:CCSD(T)/cc-pvtz:cc-pvqz:cc-pvdz'",
        )
    level = replace(QuantumLevel(method.lower(), bases), **_options(query))
    if level.method in ("rhf", "uhf"):
        level = replace(level, method="hf")
    if len(bases) > 3 or (len(bases) == 3 and level.method != "ccsd(t)"):
        raise InputError(
            f"{len(bases)} basis sets", key="pyscf", hint="one, two to extrapolate, a third with CCSD(T)"
        )
    if len(bases) > 1:
        if not level.correlated and level.method != "hf":
            raise InputError(
                f"{method} is not extrapolated", key="pyscf", hint="a density functional takes one basis set"
            )
        extrapolation(*bases[:2])
    return level


def _options(query: str) -> dict[str, Any]:
    known = {option.name for option in fields(QuantumLevel)[2:]}
    given: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name not in known:
            raise InputError(f"pyscf has no option {name!r}", key="pyscf", hint=did_you_mean(name, known))
        given[name] = _value(name, value)
    return given


def _value(name: str, text: str) -> Any:
    choices = {"fitting": ("yes", "no"), "frozen": ("yes", "no"), "forces": ("auto", "numerical", "none")}
    if name in choices:
        if text not in choices[name]:
            raise InputError(f"{text!r} is not possible", key=name, hint=" or ".join(choices[name]))
        return text if name == "forces" else text == "yes"
    try:
        value = int(text) if name == "grid" else float(text)
    except ValueError:
        value = -1
    if not 0 < value < 10:
        raise InputError(f"{text!r} is not possible", key=name, hint="give a number")
    return value


def _said(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else f"{value}"


class PySCFCalculator(Calculator):
    """Energy, and forces where the level has them, of a molecule.

    The charge is ``atoms.info["charge"]`` or the sum of the initial charges, the multiplicity
    ``atoms.info["multiplicity"]``, or one more than the sum of the initial magnetic moments, or the lowest one. Closed
    shells are restricted, open shells unrestricted.

    Args:
        level: of theory.
        memory: MB that PySCF may use; None: its own default.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]
    progress_folder: Path | None = None
    """Where energies of central differences are kept until all are there."""

    def __init__(self, level: QuantumLevel, memory: float | None = None) -> None:
        super().__init__()
        self.level, self.memory = level, memory
        if not level.has_forces:
            self.implemented_properties = ["energy"]  # type: ignore[misc]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute; called by ASE.

        Raises:
            CalculationError: when an iteration does not converge, or PySCF does not know the method or a basis.
            InputError: for a periodic structure.
        """
        from ase.units import Hartree

        super().calculate(atoms, list(properties), list(system_changes))
        molecule = self.atoms
        if molecule.pbc.any():
            raise InputError("pyscf: computes molecules here, the structure is periodic", key="--calculator")
        wanted = self.level.has_forces and "forces" in properties
        parts, forces = self._parts(molecule.positions, gradient=wanted and self.level.forces == "auto")
        self.results = {"energy": parts["total"] * Hartree}
        self.results["parts"] = {name: value * Hartree for name, value in parts.items() if name != "total"}
        if wanted:
            self.results["forces"] = self._numerical() if forces is None else forces

    def _numerical(self) -> NDArray[np.float64]:
        """(N, 3) eV/Å, central differences of the energy; what was computed before a kill is taken from the folder."""
        from ase.units import Hartree

        positions, step = self.atoms.positions, self.level.step
        known = _Displaced(self.progress_folder, self.level, self.atoms)
        forces = np.zeros_like(positions)
        for place in np.ndindex(*positions.shape):
            energies = []
            for sign in (1, -1):
                name = f"{place[0]} {'xyz'[place[1]]} {sign:+d}"
                if name not in known.energies:
                    moved = positions.copy()
                    moved[place] += sign * step
                    known.add(name, self._parts(moved, gradient=False)[0]["total"])
                energies.append(known.energies[name])
            forces[place] = -(energies[0] - energies[1]) * Hartree / (2 * step)
        return forces

    def _parts(
        self, positions: NDArray[np.float64], *, gradient: bool
    ) -> tuple[dict[str, float], NDArray[np.float64] | None]:
        """The energy and what it consists of in Hartree; analytic forces in eV/Å."""
        level = self.level
        method = "mp2" if level.method == "ccsd(t)" and len(level.bases) == 3 else level.method
        singles = [self._single(positions, method, basis, gradient=gradient) for basis in level.bases[:2]]
        if len(singles) == 1:
            reference, correlation, forces = singles[0]
            parts = {"total": reference + correlation}
            return (
                parts | {"scf": reference, "correlation": correlation} if level.correlated else parts
            ), forces
        limit = extrapolation(*level.bases[:2])
        reference = limit.hartree_fock(singles[0][0], singles[1][0])
        correlation = limit.correlation(singles[0][1], singles[1][1]) if level.correlated else 0.0
        parts = {"scf": reference, "correlation": correlation}
        if len(level.bases) == 3:
            parts["correction"] = self._correction(positions, level.bases[2])
        forces = None
        if gradient:  # Hartree-Fock: the limit is linear in the two energies
            assert singles[0][2] is not None
            assert singles[1][2] is not None
            share = limit.hartree_fock(1.0, 0.0)
            forces = share * singles[0][2] + (1.0 - share) * singles[1][2]
        return {"total": sum(parts.values()), **parts}, forces

    def _molecule(self, positions: NDArray[np.float64], basis: str) -> Any:
        from ase.units import Bohr

        pyscf = _pyscf()
        charge, unpaired = _charge_and_spin(self.atoms)
        try:
            return pyscf.gto.M(
                atom=[(int(z), tuple(r)) for z, r in zip(self.atoms.numbers, positions / Bohr, strict=True)],
                unit="Bohr",
                basis=basis,
                charge=charge,
                spin=unpaired,
                max_memory=self.memory or _MEMORY,
                verbose=0,
            )
        except Exception as error:
            raise CalculationError(f"PySCF refuses {basis}: {error}") from error

    def _scf(self, molecule: Any, method: str) -> Any:
        """A converged mean field."""
        _pyscf()
        if method in ("hf", *_CORRELATED):
            field = molecule.HF() if molecule.spin else molecule.RHF()
        else:
            try:
                field = molecule.KS(xc=method)
                field.grids.level = self.level.grid
                _ = field._numint.libxc.parse_xc(method)  # noqa: SLF001 - it has no other test of the name
            except Exception as error:
                raise InputError(f"PySCF knows no functional {method!r}", key="pyscf") from error
        if self.level.fitting:
            field = field.density_fit()
        field.conv_tol, field.max_cycle = self.level.convergence, 100
        field.kernel()
        if not field.converged:
            field = field.newton()
            field.kernel(field.mo_coeff, field.mo_occ)
        if not field.converged:
            raise CalculationError("the SCF does not converge")
        return field

    def _single(
        self, positions: NDArray[np.float64], method: str, basis: str, *, gradient: bool
    ) -> tuple[float, float, NDArray[np.float64] | None]:
        """SCF energy and correlation energy in Hartree, forces in eV/Å where they are analytic."""
        from ase.units import Bohr, Hartree

        field = self._scf(self._molecule(positions, basis), method)
        forces = None
        if gradient:
            forces = -np.asarray(field.nuc_grad_method().kernel()) * Hartree / Bohr
        correlation = self._correlation(field, method) if method in _CORRELATED else 0.0
        return float(field.e_tot), correlation, forces

    def _correction(self, positions: NDArray[np.float64], basis: str) -> float:
        """CCSD(T) minus MP2."""
        field = self._scf(self._molecule(positions, basis), "hf")
        return self._correlation(field, "ccsd(t)") - self._correlation(field, "mp2")

    def _correlation(self, field: Any, method: str) -> float:
        from pyscf import cc, mp
        from pyscf.data.elements import chemcore

        frozen = chemcore(field.mol) if self.level.frozen else None
        if field.mol.nelectron < 2:
            return 0.0
        if method == "mp2":
            perturbation = mp.MP2(field, frozen=frozen or None)
            return float(perturbation.kernel(with_t2=False)[0])
        cluster = cc.CCSD(field, frozen=frozen or None)
        cluster.conv_tol, cluster.max_cycle = 1e-8, 100
        cluster.kernel()
        if not cluster.converged:
            raise CalculationError("the coupled-cluster equations do not converge")
        return float(cluster.e_corr) + (float(cluster.ccsd_t()) if method == "ccsd(t)" else 0.0)


class _Displaced:
    """Energies in Hartree of displaced structures, written down one by one where there is a folder for them."""

    def __init__(self, folder: Path | None, level: QuantumLevel, atoms: Atoms) -> None:
        self.energies: dict[str, float] = {}
        self._path = folder / "displaced.jsonl" if folder is not None else None
        if folder is None or self._path is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        charge, unpaired = _charge_and_spin(atoms)
        about = [str(level), atoms.numbers.tolist(), atoms.positions.tolist(), charge, unpaired]
        head = json.dumps(about)
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        if not lines or lines[0] != head + "\n":
            write_text(self._path, head + "\n")
            return
        for line in lines[1:]:
            if line.endswith("\n"):  # else it was being written when its process was killed
                name, energy = json.loads(line)
                self.energies[name] = energy
        if not lines[-1].endswith("\n"):
            write_text(self._path, "".join(lines[:-1]))

    def add(self, name: str, energy: float) -> None:
        self.energies[name] = energy
        if self._path is not None:
            append(self._path, json.dumps([name, energy]) + "\n")


def _charge_and_spin(atoms: Atoms) -> tuple[int, int]:
    """Charge and number of unpaired electrons."""
    found = electrons_of_atoms(atoms)
    return found.charge, found.multiplicity - 1


def _pyscf() -> Any:
    try:
        import pyscf
        from pyscf import dft, gto, scf  # noqa: F401 - they add the methods of molecules
    except ImportError as error:
        raise InputError(
            "pyscf is not installed", key="--calculator", hint="pip install 'pimlip-zoo[pyscf]'"
        ) from error
    return pyscf
