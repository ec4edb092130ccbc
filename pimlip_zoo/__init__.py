"""pimlip-zoo: equivariant interatomic potentials that learn from physics where labels are sparse.

>>> import pimlip_zoo as pz
>>> sorted(pz.available_models())[0]
'allegro'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.3.0.dev0"

__all__ = [
    "AtomGraph",
    "AtomicEnergyModel",
    "InputError",
    "ModelConfig",
    "Potential",
    "available_models",
    "calculator",
    "checkpoint_file",
    "edge_vectors",
    "get_model",
    "load",
    "register_model",
    "train",
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
    "load": "pimlip_zoo.api",
    "checkpoint_file": "pimlip_zoo.api",
    "calculator": "pimlip_zoo.api",
    "train": "pimlip_zoo.api",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'pimlip_zoo' has no attribute {name!r}")
