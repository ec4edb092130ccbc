"""One calculator is used by one thread after the other."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms


class Turns:
    """A lock that a copy, a pickle or a forked process has anew."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():  # a thread of the parent may have had it
            self._lock, self._process = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()


class InTurns:
    """In front of ASE's ``Calculator``: what a thread asks for is computed and read before another one is let in.

    A calculator keeps its last structure and results: threads that share one would get each other's. Copies compute
    side by side.
    """

    turns: Turns

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy or a pickle, which waits for nobody."""
        return {**self.__dict__, "turns": Turns()}

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As ASE's."""
        with self.turns:
            return super().get_property(name, atoms, allow_calculation)  # type: ignore[misc]
