"""What users call from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from pimlip_zoo.models.potential import Potential

__all__ = ["calculator", "load"]


def load(run: str | Path, **options: Any) -> Potential:
    """The trained potential of a run folder or checkpoint.

    Args:
        run: run folder or checkpoint.
        options: of :func:`pimlip_zoo.training.checkpoint.load_potential`: dtype, which.
    """
    from pimlip_zoo.training.checkpoint import load_potential

    return load_potential(run, **options)


def calculator(*runs: str | Path, device: str = "cpu", skin: float = 0.5, **options: Any) -> Calculator:
    """An ASE calculator of a run folder or checkpoint; of several, their mean with its spread.

    A run that learnt the difference to a cheap calculator is added to that calculator.

    Args:
        runs: run folders or checkpoints.
        device: where to compute.
        skin: Å, see :class:`~pimlip_zoo.deploy.ase.PimlipCalculator`.
        options: of :func:`load`.
    """
    from pimlip_zoo.deploy.ase import PimlipCalculator
    from pimlip_zoo.deploy.difference import with_baseline
    from pimlip_zoo.training.checkpoint import baseline_of

    members = [
        PimlipCalculator(load(run, difference=True, **options), device=device, skin=skin) for run in runs
    ]
    baselines = {baseline_of(run) for run in runs}
    if len(members) == 1:
        return with_baseline(members[0], baselines)
    from pimlip_zoo.deploy.committee import CommitteeCalculator

    return with_baseline(CommitteeCalculator(members), baselines)
