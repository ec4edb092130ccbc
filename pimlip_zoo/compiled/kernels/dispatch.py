"""Which backend computes: chosen here, by name, for all kernels."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels import build, cueq, launch
from pimlip_zoo.compiled.kernels.library import KernelLibrary
from pimlip_zoo.errors import InputError, did_you_mean
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
