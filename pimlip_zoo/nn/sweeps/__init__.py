"""Energies and their derivatives by four sweeps over a model's steps, without autograd.

A model is traced once into a list of blocks (``trace``), each of which offers forward, force adjoint, tangent and
second adjoint (``block``); ``run`` goes over the list. What has no block is done by autograd (``fallback``).
"""

# The blocks register themselves.
from pimlip_zoo.nn.sweeps import convolution, edges, gate, linear, mlp, polynomial, product, tensor_calls
from pimlip_zoo.nn.sweeps.run import Sweeps, compile_ahead, energies_and_gradient, sweeps_of

__all__ = [
    "Sweeps",
    "compile_ahead",
    "convolution",
    "edges",
    "energies_and_gradient",
    "gate",
    "linear",
    "mlp",
    "polynomial",
    "product",
    "sweeps_of",
    "tensor_calls",
]
