"""Several calculations at a time, each in a process of its own with a limit of time and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.labelling.structures import Structure
from pimlip_zoo.labelling.worker import as_message
from pimlip_zoo.processes import Limits, Processes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Limits", "Outcome", "Pool"]


@dataclass(frozen=True)
class Outcome:
    """How a calculation ended."""

    index: int
    """Of the structure."""
    result: dict[str, Any] | None
    failure: str | None
    seconds: float


class Pool:
    """Processes that calculate.

    Args:
        calculator: its name.
        workers: processes at a time.
        limits: of each calculation.
        folder: where calculators that write files may do so.

    Raises:
        InputError: when the calculator is refused.
    """

    def __init__(
        self, calculator: str, *, workers: int = 1, limits: Limits | None = None, folder: Path | None = None
    ) -> None:
        self._processes = Processes(
            "from pimlip_zoo.labelling.worker import main; main()",
            {"calculator": calculator, "folder": str((folder or Path("labelling")).absolute())},
            count=workers,
            limits=limits,
            key="--calculator",
        )
        self.about = self._processes.about
        """What the calculator is: version, level, known."""

    def run(self, jobs: Sequence[tuple[int, Structure]], *, compare: bool = False) -> Iterator[Outcome]:
        """Compute; outcomes come in the order in which they end.

        Args:
            jobs: number and structure.
            compare: also find out whether energies and forces belong together.

        Raises:
            InputError: when the calculator refuses a structure that it cannot do by its nature.
        """
        messages = [
            (index, {"structure": as_message(structure), "compare": compare}) for index, structure in jobs
        ]
        for answer in self._processes.run(messages):
            content = answer.content or {"failure": answer.failure}
            yield Outcome(answer.index, content.get("result"), content.get("failure"), answer.seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()
