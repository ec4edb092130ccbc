"""A trained potential as the cheap calculator of another one: ``run:RUN``."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from pimlip_zoo.api import calculator, checkpoint_file
from pimlip_zoo.datasets.unseen import UnseenElectrons
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import content_hash, regular_file
from pimlip_zoo.weak_labels.calculators import KEY, OF_RUN, OTHER_RUN, PIN, RUN, TRAINED, CheapCalculator

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

_DEEPEST = 3
_being_loaded: ContextVar[tuple[str, ...]] = ContextVar("runs beside each other", default=())
"""Runs that are corrections to the next one: two checkpoints may name each other."""


def find_run(name: str, *, trust: bool) -> CheapCalculator:
    """A trained potential, as any program that uses this package would load it."""
    run, _, pin = name.removeprefix(RUN).partition(PIN)
    file = checkpoint_file(run)
    if not trust and file.suffix != ".ckpt":  # a native model is a program
        raise InputError(
            f"the model names {run}, which is no checkpoint",
            hint="if you trust whoever made the files: --trust of eval and md, or trust=True in Python",
        )
    version = OF_RUN + content_hash(regular_file(file))[:16]
    if pin and version != f"{OF_RUN}{pin}":
        raise InputError(OTHER_RUN, file=run, key=KEY)

    def make() -> Calculator:
        above = _being_loaded.get()
        if len(above) == _DEEPEST:
            raise InputError(
                f"is a correction to {' to '.join(above[1:])}, and so on", file=above[0], key=KEY
            )
        before = _being_loaded.set((*above, run))
        try:
            return _quiet(calculator(run))
        finally:
            _being_loaded.reset(before)

    return CheapCalculator(name, version, make, known=False, by_name=False, all_cores=True)


def _quiet(found: Calculator) -> Calculator:
    """Of a run: that its model does not see charges is said once for all structures, not by each process."""
    unseen = getattr(found, "unseen", None)
    if isinstance(unseen, UnseenElectrons):
        unseen.said = True
    return found


TRAINED.add(RUN, find_run, find_run)
