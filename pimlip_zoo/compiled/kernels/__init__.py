"""One mathematical operation, several backends; which one computes is decided in ``dispatch``."""

from pimlip_zoo.compiled.kernels.contexts import plain_torch
from pimlip_zoo.compiled.kernels.convolution.form import TrilinearForm
from pimlip_zoo.compiled.kernels.convolution.operation import convolve
from pimlip_zoo.compiled.kernels.convolution.reference import ReferenceConvolution, reference_convolution
from pimlip_zoo.compiled.kernels.dispatch import (
    available_backends,
    chosen_backend,
    compiled_for,
    compiled_operation,
    or_reference,
    use_kernels,
)
from pimlip_zoo.compiled.kernels.embedding import EmbeddingForm, embed_edges
from pimlip_zoo.compiled.kernels.forks import one_thread_after_fork
from pimlip_zoo.compiled.kernels.mlp import MLPForm, perceptron
from pimlip_zoo.compiled.kernels.polynomial.cpu import PolynomialForm
from pimlip_zoo.compiled.kernels.polynomial.operation import contract
from pimlip_zoo.compiled.kernels.product.operation import multiply_edges
from pimlip_zoo.compiled.kernels.scope import geometry_is_leaf, geometry_only
from pimlip_zoo.compiled.kernels.sums import sum_by_centre

__all__ = [
    "EmbeddingForm",
    "MLPForm",
    "PolynomialForm",
    "ReferenceConvolution",
    "TrilinearForm",
    "available_backends",
    "chosen_backend",
    "compiled_for",
    "compiled_operation",
    "contract",
    "convolve",
    "embed_edges",
    "geometry_is_leaf",
    "geometry_only",
    "multiply_edges",
    "one_thread_after_fork",
    "or_reference",
    "perceptron",
    "plain_torch",
    "reference_convolution",
    "sum_by_centre",
    "use_kernels",
]
