"""Writes a potential as a native model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pimlip_zoo.deploy.metadata import export_metadata
from pimlip_zoo.deploy.native.archive import TARGETS, NativeFile, read_native, write_native
from pimlip_zoo.deploy.native.library import NativeModel
from pimlip_zoo.deploy.native.program import Program
from pimlip_zoo.deploy.native.record import record
from pimlip_zoo.deploy.native.source import constant_offsets, model_source
from pimlip_zoo.deploy.selfcheck import compare
from pimlip_zoo.deploy.torchscript import ExportReport, prepared
from pimlip_zoo.errors import InputError

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

__all__ = ["export_native", "pair_style_function"]


def export_native(
    potential: Potential,
    path: str | os.PathLike[str],
    *,
    name: str = "",
    dtype: torch.dtype | None = None,
    training: Mapping[str, object] | None = None,
) -> ExportReport:
    """Write a potential as C and weights, and check what was written.

    The file appears under its name only after it has been read back, compiled, and has agreed with the potential.

    Args:
        potential: with the weights to export; not changed.
        path: where to.
        name: of the architecture, for the file's metadata.
        dtype: precision inside, the potential's own by default; the border is float64 always.
        training: where the weights come from, anything that JSON takes.

    Raises:
        InputError: when a part of the model has no native form, there is no C compiler, or the path cannot be
            written.
        ExportError: when the file computes something else than the potential.
    """
    started = time.perf_counter()
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError("there is no such folder", file=path.parent, mend="make it, or give another path")
    ready = prepared(potential, dtype)
    metadata = export_metadata(
        ready, name=name or type(potential.model).__name__, dtype=ready.model.dtype, training=training or {}
    )
    program = record(ready)
    sources = {width: model_source(program, width, registers) for width, registers in TARGETS.items()}
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_native(scratch, NativeFile(metadata, sources, weights_bytes(program)))
        deviation = compare(ready, pair_style_function(NativeModel(scratch)), by_positions=False)
        written = read_native(scratch).metadata
        if any(written.get(key) != value for key, value in metadata.items()):
            raise InputError("the metadata did not survive writing", file=path)
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror or error}", file=path) from error
    finally:
        scratch.unlink(missing_ok=True)
    return ExportReport(path, time.perf_counter() - started, deviation, metadata)


def weights_bytes(program: Program) -> bytes:
    """All constants one after the other."""
    offsets, total = constant_offsets(program)
    out = bytearray(total)
    for number, value in program.constants.items():
        content = value.contiguous().numpy().tobytes()
        out[offsets[number] : offsets[number] + len(content)] = content
    return bytes(out)


def pair_style_function(model: NativeModel) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A model with the inputs and results of ``pair_style pimlip`` as tensors."""

    def evaluate(data: dict[str, Tensor]) -> dict[str, Tensor]:
        energy, gradient = model.evaluate(
            *(data[key].numpy() for key in ("edge_vectors", "edge_index", "atom_types", "is_local"))
        )
        return {
            "atomic_energy": torch.as_tensor(energy).unsqueeze(1),
            "edge_gradient": torch.as_tensor(gradient),
        }

    return evaluate
