"""Whether a simulation still is one of matter: what is watched, and the sentence that ends it.

Small test errors do not mean stable dynamics; X. Fu et al., "Forces are not enough", TMLR (2023), found
models of low force errors whose molecules break within picoseconds and proposed to watch the bonds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pimlip_zoo.datasets.neighbour_list import neighbour_distances, neighbour_list

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

# Elements whose mutual bonds are covalent: these are expected to last through a simulation.
_COVALENT = ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I")
# Between these a proton may hop, as in enols, acids and water: it is not lost while one of them holds it.
_PROTON_HOLDERS = ("N", "O", "F", "S")
_BONDED = 1.25  # times the sum of covalent radii
_COLDEST = 100.0  # K


@dataclass(frozen=True, kw_only=True)
class StabilityLimits:
    """Beyond these a simulation is stopped."""

    collapse: float = 0.55
    """Shortest distance of two atoms, in units of the sum of their covalent radii."""
    bond_stretch: float | None = 0.5
    """Å by which a covalent bond of the first frame may become longer or shorter; None for reactions. A proton that
    moves between N, O, F and S breaks no bond, as long as one of them holds it."""
    energy_drift: float = 0.02
    """eV per atom by which the total energy may differ from that of the first frame (NVE only)."""
    temperature_factor: float = 5.0
    """How many times hotter than the target (or than 100 K) it may get."""
    volume_factor: float = 2.0
    """How many times larger or smaller the volume may become."""


class StabilityMonitor:
    """Watches one simulation from its first frame on.

    Args:
        atoms: the first frame, with its calculator and momenta.
        temperature: target in K.
        conserves_energy: whether the total energy is to stay as it is.
        limits: what is allowed.
    """

    def __init__(
        self,
        atoms: Atoms,
        *,
        temperature: float,
        conserves_energy: bool,
        limits: StabilityLimits | None = None,
    ) -> None:
        from ase.data import covalent_radii

        self.limits = limits or StabilityLimits()
        self.temperature = temperature
        self.conserves_energy = conserves_energy
        self._radii = covalent_radii[atoms.numbers]
        self._bonds, self._bond_shifts = _covalent_bonds(atoms, self._radii)
        self._bond_lengths = self._measure_bonds(atoms)
        self._protons = _protons(atoms, self._bonds)
        self._holders = np.flatnonzero(np.isin(np.array(atoms.symbols), _PROTON_HOLDERS))
        atoms.get_forces()
        self._energy = float(atoms.get_total_energy())
        self._volume = abs(float(atoms.cell.volume)) if atoms.pbc.all() else None

    @property
    def bond_count(self) -> int:
        """How many bonds are watched."""
        return len(self._bond_lengths)

    def check(self, atoms: Atoms) -> str | None:
        """What is wrong with a frame whose energy and forces are known, or None."""
        return (
            self.check_finite(atoms)
            or self._check_distances(atoms)
            or self._check_bonds(atoms)
            or self._check_energy(atoms)
            or self._check_temperature(atoms)
            or self._check_volume(atoms)
        )

    @staticmethod
    def check_finite(atoms: Atoms) -> str | None:
        """The part of the check that is cheap enough for every step; looks at results that are there already."""
        results = atoms.calc.results
        for name, values in (
            ("position", atoms.positions),
            ("force", results["forces"]),
            ("velocity", atoms.arrays["momenta"]),
        ):
            bad = ~np.isfinite(values).all(axis=1)
            if bad.any():
                return f"the {name} of atom {_label(atoms, int(bad.argmax()))} is not a number"
        if not np.isfinite(results.get("energy", 0.0)):
            return "the energy is not a number"
        return None

    def _check_distances(self, atoms: Atoms) -> str | None:
        reach = 2 * self.limits.collapse * float(self._radii.max(initial=0.0))
        edges, _, lengths = neighbour_distances(atoms, max(reach, 0.1))
        if len(lengths) == 0:
            return None
        ratio = lengths / (self._radii[edges[0]] + self._radii[edges[1]])
        worst = int(ratio.argmin())
        if ratio[worst] >= self.limits.collapse:
            return None
        i, j = (int(k) for k in edges[:, worst])
        return f"atoms {_label(atoms, i)} and {_label(atoms, j)} came as close as {lengths[worst]:.2f} Å"

    def _check_bonds(self, atoms: Atoms) -> str | None:
        allowed = self.limits.bond_stretch
        if allowed is None or self.bond_count == 0:
            return None
        lengths = self._measure_bonds(atoms)
        change = np.abs(lengths - self._bond_lengths)
        for bond in np.flatnonzero((change > allowed) & (lengths > self._bond_lengths)):
            reach = float(self._bond_lengths[bond]) + allowed
            if self._protons[bond] >= 0 and self._is_held(atoms, int(self._protons[bond]), reach):
                change[bond] = 0.0
        worst = int(change.argmax())
        if change[worst] <= allowed:
            return None
        i, j = (int(k) for k in self._bonds[:, worst])
        verb = "broke" if lengths[worst] > self._bond_lengths[worst] else "was crushed"
        return (
            f"the bond {_label(atoms, i)}-{_label(atoms, j)} {verb}: "
            f"{self._bond_lengths[worst]:.2f} Å at the start, {lengths[worst]:.2f} Å now"
        )

    def _is_held(self, atoms: Atoms, proton: int, reach: float) -> bool:
        """Whether one of the atoms that protons hop between is within reach."""
        distances = atoms.get_distances(proton, self._holders, mic=bool(atoms.pbc.any()))
        return bool((distances <= reach).any())

    def _check_energy(self, atoms: Atoms) -> str | None:
        if not self.conserves_energy or len(atoms) == 0:
            return None
        drift = (float(atoms.get_total_energy()) - self._energy) / len(atoms)
        if abs(drift) <= self.limits.energy_drift:
            return None
        return f"the total energy drifted by {1000 * drift:.1f} meV/atom"

    def _check_temperature(self, atoms: Atoms) -> str | None:
        allowed = self.limits.temperature_factor * max(self.temperature, _COLDEST)
        temperature = float(atoms.get_temperature())
        return f"the temperature rose to {temperature:.0f} K" if temperature > allowed else None

    def _check_volume(self, atoms: Atoms) -> str | None:
        if not self._volume:
            return None
        ratio = abs(float(atoms.cell.volume)) / self._volume
        factor = self.limits.volume_factor
        return None if 1 / factor <= ratio <= factor else f"the volume became {ratio:.2f} times what it was"

    def _measure_bonds(self, atoms: Atoms) -> NDArray[np.float64]:
        return _lengths(atoms, self._bonds, self._bond_shifts)


def _covalent_bonds(
    atoms: Atoms, radii: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of the first frame that are bonded, each once: indices (2, B) and cell shifts (B, 3)."""
    reach = 2 * _BONDED * float(radii.max(initial=0.0))
    edges, shifts = neighbour_list(atoms.positions, np.array(atoms.cell), atoms.pbc, max(reach, 0.1))
    covalent = np.isin(np.array(atoms.symbols), _COVALENT)
    near = _lengths(atoms, edges, shifts) < _BONDED * (radii[edges[0]] + radii[edges[1]])
    keep = near & covalent[edges[0]] & covalent[edges[1]] & (edges[0] < edges[1])
    return edges[:, keep], shifts[keep]


def _protons(atoms: Atoms, bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each bond the hydrogen, where the other atom is one that protons hop between, otherwise -1."""
    hydrogen = atoms.numbers[bonds] == 1
    holder = np.isin(np.array(atoms.symbols), _PROTON_HOLDERS)[bonds]
    first, second = hydrogen[0] & holder[1], hydrogen[1] & holder[0]
    return np.where(first, bonds[0], np.where(second, bonds[1], -1))


def _lengths(atoms: Atoms, edges: NDArray[np.int64], shifts: NDArray[np.float64]) -> NDArray[np.float64]:
    vectors = atoms.positions[edges[1]] - atoms.positions[edges[0]] + shifts @ np.array(atoms.cell)
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1)
    return lengths


def _label(atoms: Atoms, index: int) -> str:
    return f"{atoms.symbols[index]}{index}"
