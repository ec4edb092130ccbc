"""Which backend computes: chosen here, by name, for all kernels."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels import build, cueq, embedding, launch, mlp
from pimlip_zoo.compiled.kernels.convolution import operation as convolution
from pimlip_zoo.compiled.kernels.convolution.cpu import cpu_convolution
from pimlip_zoo.compiled.kernels.convolution.form import TrilinearForm
from pimlip_zoo.compiled.kernels.convolution.gpu import triton_convolution
from pimlip_zoo.compiled.kernels.edges import edge_lists
from pimlip_zoo.compiled.kernels.library import KernelLibrary
from pimlip_zoo.compiled.kernels.polynomial import operation as polynomial
from pimlip_zoo.compiled.kernels.polynomial.cpu import PolynomialForm, cpu_polynomial
from pimlip_zoo.compiled.kernels.polynomial.gpu import triton_polynomial
from pimlip_zoo.compiled.kernels.product import operation as product
from pimlip_zoo.compiled.kernels.product.cpu import cpu_edge_product
from pimlip_zoo.compiled.kernels.product.gpu import triton_edge_product
from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.graph import AtomGraph
from pimlip_zoo.registry import Registry

ENVIRONMENT = "PIMLIP_ZOO_KERNELS"
BACKENDS = ("auto", "reference", "scatter", "cpu", "triton", "cueq")
_IN_TORCH = ("reference", "scatter")

_log = logging.getLogger("pimlip_zoo.kernels")
_override = threading.local()  # and no ContextVar, which torch.compile cannot read without leaving its graph
_failed: list[str] = []  # why there are no compiled kernels, once that is known

Kernels = TypeVar("Kernels")


@dataclass(frozen=True)
class CompiledOperation:
    """Who computes an operation besides plain torch: of each backend, what makes the kernels of one form."""

    cpu: Callable[..., KernelLibrary]
    triton: Callable[..., Any] | None = None
    cueq: Callable[..., Tensor] | None = None
    """No kernels to be had, but the operation itself."""

    def backend(self, *tensors: Tensor, cpu_only: bool = False, nothing: bool = False) -> str:
        """What computes the operation on these tensors: reference, or one of the backends that have kernels for it.

        A backend that is chosen by name but has no kernel for the operation leaves it to what ``auto`` would take.

        Args:
            tensors: that are computed with, one at least.
            cpu_only: backends besides the compiled one have no kernel for this form.
            nothing: no kernel is needed, or there is none.

        Raises:
            InputError: for a backend that cannot compute where these tensors are.
        """
        name, device = chosen_backend(), tensors[0].device
        if nothing or name in _IN_TORCH or not _plain(*tensors):
            return "reference"
        covered = not cpu_only and name in ("triton", "cueq") and getattr(self, name) is not None
        if name == "triton" and covered and device.type == "cpu" and not launch.interpreted():
            raise InputError(
                "triton computes on GPUs and got a tensor on the CPU",
                key=ENVIRONMENT,
                hint="move the model to the GPU, use auto, or set TRITON_INTERPRET=1 to test",
            )
        if name == "cueq" and any(t.numel() == 0 for t in tensors):
            return "reference"  # its fallback knows no empty operands
        if covered:
            return name
        return "cpu" if device.type == "cpu" else "reference"

    def kernels(self, backend: str, *form: Any) -> Any:
        """What computes this form by a backend, or None where that is plain torch."""
        if backend == "reference":
            return None
        make: Callable[..., Any] = getattr(self, backend)
        return make(*form) if backend == "triton" else or_reference(lambda: make(*form).prepared())


OPERATIONS: Registry[CompiledOperation] = Registry("compiled operation", None)
"""Everything that has kernels; nobody chooses one by its name: who calls it imports it."""


def compiled_operation(
    name: str,
    *,
    cpu: Callable[..., KernelLibrary],
    triton: Callable[..., Any] | None = None,
    cueq: Callable[..., Tensor] | None = None,
) -> CompiledOperation:
    """Make an operation known beside its kernels, here or in another package.

    Args:
        name: what it is called.
        cpu: from a form to its kernels in C.
        triton: from a form to its kernels for GPUs.
        cueq: the operation itself, by cuEquivariance.

    Raises:
        InputError: when another one has the name already.
    """
    found = CompiledOperation(cpu, triton, cueq)
    OPERATIONS.add(name, found, cpu)
    return found


_CONVOLVE = compiled_operation("convolve", cpu=cpu_convolution, triton=triton_convolution, cueq=cueq.convolve)
_MULTIPLY_EDGES = compiled_operation(
    "multiply_edges", cpu=cpu_edge_product, triton=triton_edge_product, cueq=cueq.multiply_edges
)
_CONTRACT = compiled_operation("contract", cpu=cpu_polynomial, triton=triton_polynomial, cueq=cueq.contract)
_PERCEPTRON = compiled_operation("perceptron", cpu=mlp.cpu_mlp)
_EMBED_EDGES = compiled_operation("embed_edges", cpu=embedding.cpu_embedding)


class EdgeProductLike(Protocol):
    """What :func:`multiply_edges` has to know."""

    entries: tuple[tuple[int, int], ...]
    dim_in: int
    dim_out: int

    def reference(self, features: Tensor, matrices: Tensor, centre: Tensor) -> Tensor:
        """The same in plain torch."""
        ...


class EmbeddingLike(Protocol):
    """What :func:`embed_edges` has to know."""

    form: embedding.EmbeddingForm | None

    def reference(self, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """The same in plain torch."""
        ...

    def reduced_length(self, length: Tensor, graph: AtomGraph) -> Tensor:
        """Lengths over each edge's cutoff."""
        ...


@contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Use one backend inside a ``with`` block, whatever the environment says; other threads notice nothing.

    Args:
        name: auto, reference, scatter, cpu, triton or cueq.

    Raises:
        InputError: for an unknown name, or a backend that does not work here.
    """
    before = getattr(_override, "name", None)
    _override.name = _checked(name, "use_kernels")
    try:
        yield
    finally:
        _override.name = before


def chosen_backend() -> str:
    """The name in force: that of :func:`use_kernels`, else of ``$PIMLIP_ZOO_KERNELS``, else auto.

    Raises:
        InputError: when the environment names a backend that does not exist or does not work here.
    """
    chosen: str | None = getattr(_override, "name", None)
    if chosen is not None:
        return chosen
    name = os.environ.get(ENVIRONMENT)
    return "auto" if not name or name == "auto" else _checked(name, ENVIRONMENT)


def compiled_for(tensor: Tensor) -> bool:
    """Whether operations on such a tensor are done by compiled kernels, as far as is known before the first one."""
    return (
        _plain(tensor) and tensor.device.type == "cpu" and chosen_backend() in ("auto", "cpu") and not _failed
    )


def available_backends() -> dict[str, str]:
    """Every backend with what there is to say about it here, for ``pimlip-zoo doctor``.

    A text that begins with ``available`` means that the backend works.
    """
    return {
        "reference": "available: torch, any device",
        "scatter": "available: reference with sums by torch-scatter, any device"
        if importlib.util.find_spec("torch_scatter")
        else "not available: torch-scatter is not installed",
        "cpu": _cpu_status(),
        "triton": launch.status(),
        "cueq": cueq.status(),
    }


def convolve(
    form: TrilinearForm,
    reference: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    harmonics: Tensor,
    weights: Tensor,
    edge_index: Tensor,
) -> Tensor:
    """The convolution by the backend in force.

    ``auto`` takes compiled kernels for float32 and float64 on the CPU, with a C compiler, and
    the reference for everything else: other dtypes, a graph that is being traced or compiled.

    Args:
        form: what is computed.
        reference: the same in plain torch.
        x: (N, K_in, C) features.
        harmonics: (E, K_edge).
        weights: (E, P, C).
        edge_index: (2, E) centre and neighbour.

    Returns:
        (N, K_out, C).
    """
    backend = _CONVOLVE.backend(x, harmonics, weights, cpu_only=bool(form.widths), nothing=not form.terms)
    if backend == "cueq":
        return cueq.convolve(form, x, harmonics, weights, edge_index)
    sums = _CONVOLVE.kernels(backend, form, int(x.shape[2]), x.dtype)
    if sums is None:
        return reference(x, harmonics, weights, edge_index)
    edges = edge_lists(edge_index, int(x.shape[0]))
    return convolution.convolve(sums, edges, x.contiguous(), harmonics.contiguous(), weights.contiguous())


def multiply_edges(module: EdgeProductLike, features: Tensor, matrices: Tensor, centre: Tensor) -> Tensor:
    """Each edge's features times the sparse matrix of its centre, by the backend in force.

    Args:
        module: says which components meet, and computes the same in plain torch.
        features: (E, K_in, C).
        matrices: (N, R, C), one row for each pair of components that meet.
        centre: (E,).

    Returns:
        (E, K_out, C).
    """
    form = (module.entries, module.dim_in, module.dim_out)
    backend = _MULTIPLY_EDGES.backend(features, matrices, nothing=not module.entries)
    if backend == "cueq":
        return cueq.multiply_edges(*form, features, matrices, centre)
    kernels = _MULTIPLY_EDGES.kernels(backend, *form, int(features.shape[2]), features.dtype)
    if kernels is None:
        return module.reference(features, matrices, centre)
    edges = edge_lists(centre, int(matrices.shape[0]))
    return product.edge_product(kernels, edges, features.contiguous(), matrices.contiguous())


def perceptron(
    form: mlp.MLPForm | None, reference: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """A multilayer perceptron by the backend in force.

    Args:
        form: what is computed; None: no kernel does it.
        reference: the same in plain torch, with the weights.
        x: (rows, sizes[0]).
        weights: of the layers, (size, next size).

    Returns:
        (rows, sizes[-1]).
    """
    backend = _PERCEPTRON.backend(x, *weights, nothing=form is None)
    kernels = _PERCEPTRON.kernels(backend, form, x.dtype)
    return reference(x) if kernels is None else mlp.mlp(kernels, x.contiguous(), weights)


def contract(
    form: PolynomialForm,
    reference: polynomial.Reference,
    x: Tensor,
    coefficients: Tensor,
    species: Tensor,
) -> Tensor:
    """Polynomials of each atom's features by the backend in force.

    Args:
        form: what is computed.
        reference: the same in plain torch.
        x: (N, K_in, C).
        coefficients: (S, T, C).
        species: (N,).

    Returns:
        (N, K_out, C).
    """
    backend = _CONTRACT.backend(x, coefficients, nothing=not form.terms)
    if backend == "cueq":
        return cueq.contract(form, x, coefficients, species)
    kernels = _CONTRACT.kernels(backend, form, int(x.shape[2]), x.dtype)
    if kernels is None:
        return reference(x, coefficients, species)
    return polynomial.polynomial(kernels, reference, x.contiguous(), coefficients.contiguous(), species)


def embed_edges(module: EmbeddingLike, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
    """Radial functions and harmonics of edges by the backend in force.

    Args:
        module: has the form, and computes the same in plain torch.
        vectors: (E, 3) Å.
        graph: the edges' atoms and species.

    Returns:
        (E, B), (E, (l_max + 1)²).
    """
    backend = _EMBED_EDGES.backend(vectors, nothing=module.form is None)
    kernels = _EMBED_EDGES.kernels(backend, module.form, vectors.dtype)
    if kernels is None:
        return module.reference(vectors, graph)
    inverse = module.reduced_length(vectors.new_ones(vectors.shape[0]), graph)
    return embedding.embed(
        kernels, lambda v: module.reference(v, graph), vectors.contiguous(), inverse.contiguous()
    )


def _checked(name: str, key: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"no kernel backend is called {name!r}", key=key, hint=did_you_mean(name, BACKENDS))
    if name in ("scatter", "triton", "cueq") and not (text := available_backends()[name]).startswith(
        "available"
    ):
        raise InputError(f"{name} is {text}", key=key, hint="use auto")
    return name


def _plain(*tensors: Tensor) -> bool:
    """Whether pointers to these tensors may be handed over: real ones in one place, nothing tracing them."""
    # Nothing public tells whether torch.jit.trace records, a dispatch mode listens, or torch.func transforms.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:  # noqa: SLF001
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:  # noqa: SLF001
        return False
    dtype, device = tensors[0].dtype, tensors[0].device
    return (
        dtype in (torch.float32, torch.float64)
        and device.type in ("cpu", "cuda")
        and all(
            type(t) in (Tensor, torch.nn.Parameter) and t.device == device and t.dtype == dtype
            for t in tensors
        )
    )


def or_reference(make: Callable[[], Kernels]) -> Kernels | None:
    """What needs compiled kernels, or None where they cannot be had, which is said once.

    Raises:
        InputError: when they are required by the name of the backend in force.
    """
    required = chosen_backend() == "cpu"
    if _failed and not required:
        return None
    try:
        return make()
    except (build.CompilerError, OSError) as error:
        if required:
            raise InputError(
                f"the compiled kernels cannot be built: {error}",
                key=ENVIRONMENT,
                hint="install a C compiler, or use auto",
            ) from error
        _failed.append(str(error))
        _log.warning("kernels run in plain torch, many times slower: %s", error)
        return None


def _cpu_status() -> str:
    if _failed:
        return f"not available: {_failed[0]}; CPUs use reference"
    try:
        name = build.compiler()[0]
    except build.CompilerError as error:
        return f"not available: {error}; CPUs use reference"
    flags = " ".join(build.machine_flags()) or "baseline instructions"
    return f"available: {name}, {flags}, kept in {build.cache_folder()}"
