"""Calculations through an executor of ``concurrent.futures``: those of parsl, dask and others run them anywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.labelling.calculators import Labeller, find_labeller
from pimlip_zoo.labelling.processes import Outcome
from pimlip_zoo.labelling.structures import Structure
from pimlip_zoo.labelling.worker import as_message, reply
from pimlip_zoo.processes import refusal

if TYPE_CHECKING:
    from typing_extensions import Self


class ExecutorPool:
    """Like :class:`~pimlip_zoo.labelling.processes.Pool`, where somebody else has the processes.

    Limits of time and memory, and what becomes of a process that dies, are the executor's business.

    Args:
        calculator: its name; it has to be importable where the executor computes.
        executor: parsl's, ``dask.distributed.Client(...).get_executor()``, or one of the standard library.
        folder: where calculators that write files may do so, seen by all.

    Raises:
        InputError: when the calculator is refused.
    """

    def __init__(self, calculator: str, executor: Executor, folder: Path) -> None:
        self.calculator, self.executor, self.folder = calculator, executor, str(folder.absolute())
        about = executor.submit(_about, calculator).result()
        if "refused" in about:
            raise InputError(**about["refused"])
        self.about: dict[str, Any] = about

    def run(self, jobs: Sequence[tuple[int, Structure]], *, compare: bool = False) -> Iterator[Outcome]:
        """Compute; outcomes come in the order in which they end.

        Raises:
            InputError: when the calculator refuses a structure that it cannot do by its nature.
        """
        begun = time.monotonic()
        futures = {
            self.executor.submit(
                _answer,
                self.calculator,
                {"structure": as_message(structure), "compare": compare},
                self.folder,
            ): index
            for index, structure in jobs
        }
        for future in as_completed(futures):
            seconds = time.monotonic() - begun
            try:
                answer = future.result()
            except Exception as error:  # noqa: BLE001 - each executor has its own way of losing a task
                answer = {"failure": reason_of(error)}
            if "refused" in answer:
                raise InputError(**answer["refused"])
            yield Outcome(futures[future], answer.get("result"), answer.get("failure"), seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The executor is its owner's."""


@lru_cache(maxsize=4)
def _labeller(calculator: str) -> Labeller:
    return find_labeller(calculator)


def _about(calculator: str) -> dict[str, Any]:
    try:
        found = _labeller(calculator)
    except InputError as error:
        return refusal(error)
    return {"version": found.version, "level": found.level, "known": found.known}


def _answer(calculator: str, message: dict[str, Any], folder: str) -> dict[str, Any]:
    return reply(message, _labeller(calculator), Path(folder))
