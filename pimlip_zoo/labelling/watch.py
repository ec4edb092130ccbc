"""Dynamics that ask how certain their forces are, and keep structures that are worth a label."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.deploy.constraints import held_coordinates, holding
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import append

if TYPE_CHECKING:
    from ase import Atoms

_APART = 50
"""Steps between structures that are kept: nearer ones are nearly the same."""


class UncertaintyWatch:
    """What ``run_md`` asks: a reason to stop, or None.

    Args:
        uncertainty: (N,) eV/Å of the forces of a structure.
        folder: of the simulation; gets ``stopped.extxyz`` and ``collected.extxyz``.
        stop: eV/Å, a larger uncertainty of a force ends the simulation.
        collect: eV/Å, structures with a larger one are kept, at most one in 50 steps.

    Raises:
        InputError: for a limit that is not more than 0.
    """

    def __init__(
        self,
        uncertainty: Callable[[Atoms], NDArray[np.float64]],
        folder: Path,
        *,
        stop: float | None = None,
        collect: float | None = None,
    ) -> None:
        for name, value in (("--stop-at-uncertainty", stop), ("--collect", collect)):
            if value is not None and not value > 0:
                raise InputError(f"{value} eV/Å is not possible", key=name, hint="more than 0")
        self.uncertainty, self.folder, self.stop, self.collect = uncertainty, folder, stop, collect
        self.largest, self.kept = 0.0, 0
        self._last: int | None = None

    def __call__(self, atoms: Atoms, step: int) -> str | None:
        """Look at a structure."""
        values = self.uncertainty(atoms)
        largest = float(values.max(initial=0.0))
        self.largest = max(self.largest, largest)
        far = self._last is None or step - self._last >= _APART
        if self.collect is not None and largest > self.collect and far:
            self._keep(atoms, values, step, "collected.extxyz")
            self._last = step
            self.kept += 1
        if self.stop is None or largest <= self.stop:
            return None
        self._keep(atoms, values, step, "stopped.extxyz")
        atom = int(values.argmax())
        return (
            f"the force on atom {atom} ({atoms.symbols[atom]}) is uncertain by {largest:.3g} eV/Å, more than "
            f"{self.stop:g}; the structure is in stopped.extxyz"
        )

    def summary(self) -> str:
        """One sentence."""
        text = f"the least certain force was uncertain by {self.largest:.3g} eV/Å"
        if self.collect is None:
            return text
        where = f" in {self.folder / 'collected.extxyz'}" if self.kept else ""
        return f"{text}; {self.kept} structures collected{where}"

    def _keep(self, atoms: Atoms, values: NDArray[np.float64], step: int, name: str) -> None:
        from ase.io.extxyz import write_extxyz

        frame = atoms.copy()
        frame.set_constraint(holding(held_coordinates(atoms)))  # whoever goes on from it holds the same
        frame.info.update(step=step, largest_uncertainty=float(values.max(initial=0.0)))
        frame.set_array("forces_uncertainty", values)
        text = StringIO()
        write_extxyz(text, [frame])
        append(self.folder / name, text.getvalue())
