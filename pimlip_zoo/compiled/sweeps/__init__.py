"""Energies and their derivatives by four sweeps over a model's steps, without autograd.

A model is traced once into a list of blocks (``trace``), each of which offers forward, force adjoint, tangent and
second adjoint (``block``); ``run`` goes over the list. What has no block is done by autograd (``fallback``).
"""

from pimlip_zoo.compiled.sweeps import (
    tensor_calls,  # registers its blocks; modules do that where they are defined
)
from pimlip_zoo.compiled.sweeps.derivatives import (
    Levels,
    predict_structures,
    virial_of_edges,
)
from pimlip_zoo.compiled.sweeps.run import Sweeps, compile_ahead, sweeps_of

__all__ = [
    "Levels",
    "Sweeps",
    "compile_ahead",
    "predict_structures",
    "sweeps_of",
    "tensor_calls",
    "virial_of_edges",
]
