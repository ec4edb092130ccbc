"""pimlip-zoo: equivariant interatomic potentials that learn from physics where labels are sparse.

>>> import pimlip_zoo as pz
>>> sorted(pz.available_models())[0]
'allegro'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from ase.calculators.calculator import Calculator

__version__ = "0.1.0.dev0"

__all__ = [
    "AtomGraph",
    "AtomicEnergyModel",
    "InputError",
    "ModelConfig",
    "Potential",
    "available_models",
    "calculator",
    "edge_vectors",
    "get_model",
    "load",
    "register_model",
]

# Imported when they are asked for: `import pimlip_zoo` is immediate.
_PLACES = {
    "AtomGraph": "pimlip_zoo.graph",
    "edge_vectors": "pimlip_zoo.graph",
    "AtomicEnergyModel": "pimlip_zoo.models.base",
    "ModelConfig": "pimlip_zoo.models.base",
    "Potential": "pimlip_zoo.models.potential",
    "InputError": "pimlip_zoo.errors",
    "available_models": "pimlip_zoo.registry",
    "get_model": "pimlip_zoo.registry",
    "register_model": "pimlip_zoo.registry",
    "load_potential": "pimlip_zoo.training.checkpoint",
    "PimlipCalculator": "pimlip_zoo.deploy.ase",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'pimlip_zoo' has no attribute {name!r}")


def load(run: str | Path, **options: Any) -> Any:
    """The trained potential of a run folder or checkpoint; see :mod:`pimlip_zoo.training.checkpoint`."""
    return __getattr__("load_potential")(run, **options)


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
