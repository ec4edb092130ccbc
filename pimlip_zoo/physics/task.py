"""One structure that properties are measured of, and what these share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pimlip_zoo.physics.crystal import Crystal, oriented, primitive, relax_crystal
from pimlip_zoo.physics.property import Findings, Kind, NotPossibleError

if TYPE_CHECKING:
    from ase import Atoms

    from pimlip_zoo.physics.judge import Judge

T = TypeVar("T")


class Task:
    """A structure and the potential that is asked about it.

    Args:
        structure: not moved; its constraints are taken away.
        kind: what it is.
        judge: the potential.
        end: another structure of the same atoms, for paths between the two.
        cutoff: Å, of the potential, where it is known.
    """

    def __init__(
        self,
        structure: Atoms,
        kind: Kind,
        judge: Judge,
        *,
        end: Atoms | None = None,
        cutoff: float | None = None,
    ) -> None:
        self.structure, self.kind, self.judge, self.end, self.cutoff = (
            structure.copy(),
            kind,
            judge,
            end,
            cutoff,
        )
        self.structure.set_constraint()
        self.structure.calc = None
        self._shared: dict[str, Any] = {}

    @property
    def elements(self) -> list[str]:
        """Those of the structure, sorted."""
        return sorted(set(self.structure.symbols))

    def asked(self, atoms: Atoms) -> Atoms:
        """A copy with the potential as its calculator."""
        copy = atoms.copy()
        copy.calc = self.judge
        return copy

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """What several properties need, made once; a failure is remembered, too.

        Raises:
            NotPossibleError: whenever it is asked for, when it could not be made.
        """
        if name not in self._shared:
            try:
                self._shared[name] = make()
            except NotPossibleError as error:
                self._shared[name] = error
        found = self._shared[name]
        if isinstance(found, NotPossibleError):
            raise NotPossibleError(str(found))
        return found

    def crystal(self, found: Findings) -> Crystal:
        """The relaxed crystal; what is to be doubted about it is written to what was found.

        Raises:
            NotPossibleError: when it does not relax.
        """
        crystal = self.shared("crystal", lambda: relax_crystal(self.structure, self.judge))
        found.doubts += [doubt for doubt in crystal.doubts if doubt not in found.doubts]
        return crystal

    def sketch(self) -> Atoms:
        """The crystal before it is relaxed, primitive where possible: what costs are estimated with."""

        def make() -> Atoms:
            smaller = primitive(self.structure)
            cell = self.structure if smaller is None else smaller
            found = oriented(cell)
            return cell if found is None else found[0]

        return self.shared("sketch", make)
