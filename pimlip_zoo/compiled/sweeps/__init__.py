"""Energies and their derivatives by four sweeps over a model's steps, without autograd.

A model is traced once into a list of blocks (``trace``), each of which offers forward, force adjoint, tangent and
second adjoint (``block``); ``run`` goes over the list. What has no block is done by autograd (``fallback``).
"""

# The blocks register themselves.
from pimlip_zoo.compiled.sweeps import (
    convolution,
    edges,
    gate,
    linear,
    mlp,
    polynomial,
    product,
    tensor_calls,
)
from pimlip_zoo.compiled.sweeps.derivatives import (
    Levels,
    energies_and_gradient,
    predict_structures,
    virial_of_edges,
)
from pimlip_zoo.compiled.sweeps.run import Sweeps, compile_ahead, sweeps_of

__all__ = [
    "Levels",
    "Sweeps",
    "compile_ahead",
    "convolution",
    "edges",
    "energies_and_gradient",
    "gate",
    "linear",
    "mlp",
    "polynomial",
    "predict_structures",
    "product",
    "sweeps_of",
    "tensor_calls",
    "virial_of_edges",
]
