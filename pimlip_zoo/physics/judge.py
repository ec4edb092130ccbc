"""The calculator that is judged, watched: what it was asked, and whether its answers are numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from pimlip_zoo.physics.property import NotPossibleError, StoppedError

if TYPE_CHECKING:
    from ase import Atoms

    from pimlip_zoo.physics.coverage import Coverage


class Judge(Calculator):
    """An ASE calculator that passes on what another one says.

    Args:
        inner: the calculator.
        coverage: of the training data; the shortest distances outside of it are kept in :attr:`outside`.
        stop: asked before every evaluation; True ends it with :class:`StoppedError`.
        tick: called after every evaluation.
    """

    def __init__(
        self,
        inner: Calculator,
        *,
        coverage: Coverage | None = None,
        stop: Callable[[], bool] | None = None,
        tick: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.coverage = inner, coverage
        self.implemented_properties = list(inner.implemented_properties)
        self.evaluations = 0
        self.outside: dict[tuple[int, int], float] = {}
        self._stop, self._tick = stop, tick

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute what is asked for; called by ASE.

        Raises:
            StoppedError: when the user ends it.
            NotPossibleError: when an answer is not a number.
        """
        if self._stop is not None and self._stop():
            raise StoppedError
        super().calculate(atoms, list(properties), list(system_changes))
        if self.coverage is not None:
            for pair, shortest in self.coverage.outside(self.atoms).items():
                self.outside[pair] = min(shortest, self.outside.get(pair, np.inf))
        results: dict[str, Any] = {}
        for name in properties:
            results[name] = self.inner.get_property(name, self.atoms)
        self.results = results | dict(self.inner.results)
        self.evaluations += 1
        for name in ("energy", "forces", "stress"):
            if name in self.results and not np.isfinite(self.results[name]).all():
                verb = "are" if name == "forces" else "is"
                raise NotPossibleError(f"the {name} of a structure on the way {verb} not a number")
        if self._tick is not None:
            self._tick()
