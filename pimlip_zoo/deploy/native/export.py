"""Writes a potential as a native model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pimlip_zoo.compiled.native.source import model_source, weights_bytes
from pimlip_zoo.deploy.metadata import export_metadata
from pimlip_zoo.deploy.native.archive import TARGETS, NativeFile, read_native, write_native
from pimlip_zoo.deploy.native.evaluation import recorded, steps_of
from pimlip_zoo.deploy.native.library import NativeModel
from pimlip_zoo.deploy.native.tabulate import Tabulated, by_steps, deviation, tabulated
from pimlip_zoo.deploy.native.uncertainty import KEY, Directions, other_weights
from pimlip_zoo.deploy.selfcheck import compare, from_edges, pair_style_inputs
from pimlip_zoo.deploy.torchscript import ExportReport, prepared
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing
from pimlip_zoo.graph import AtomGraph, Predictions

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

Evaluate = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def export_native(
    potential: Potential,
    path: str | os.PathLike[str],
    *,
    name: str = "",
    dtype: torch.dtype | None = None,
    training: Mapping[str, object] | None = None,
    table: float | None = None,
    uncertainty: Directions | None = None,
) -> ExportReport:
    """Write a potential as C and weights, and check what was written.

    The file appears under its name only after it has been read back, compiled, and has agreed with the potential.

    Args:
        potential: with the weights to export; not changed.
        path: where to.
        name: of the architecture, for the file's metadata.
        dtype: precision inside, the potential's own by default; the border is float64 always.
        training: where the weights come from, anything that JSON takes.
        table: replace functions of distances alone by tables, so that energies of atoms (eV) and forces (eV/Å) are
            off by at most this much, relative where they exceed 1 eV or 1 eV/Å; what they are off by is in the
            metadata, ``radial_table``.
        uncertainty: a posterior of the last layer, with which the file says how certain its forces are.

    Raises:
        InputError: when a part of the model has no native form, there is no C compiler, the path cannot be
            written, or tables are off by more than was asked for.
        ExportError: when the file computes something else than the potential.
    """
    started = time.perf_counter()
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError("there is no such folder", file=path.parent, hint="make it, or give another path")
    ready = prepared(potential, dtype)
    metadata = export_metadata(
        ready, name=name or type(potential.model).__name__, dtype=ready.model.dtype, training=training or {}
    )
    made = None if table is None else tabulated(ready, table)
    trace = steps_of(ready) if made is None else made.trace
    program = recorded(ready, trace)
    sources = {width: model_source(program, width, registers) for width, registers in TARGETS.items()}
    weights, others = weights_bytes(program), None
    if uncertainty is not None:
        others = other_weights(ready, uncertainty, weights, lambda: recorded(ready, trace))
        metadata[KEY] = others.text
    with replacing(path) as scratch:
        content = NativeFile(metadata, sources, weights, others)
        write_native(scratch, content)
        written = pair_style_function(NativeModel(scratch))
        largest = compare(
            ready, written, by_positions=False, expected=None if made is None else by_steps(ready, trace)
        )
        if made is not None and table is not None:
            metadata["radial_table"] = _statement(ready, written, made, table)
            write_native(scratch, replace(content, metadata=metadata))
        found = read_native(scratch).metadata
        if any(found.get(key) != value for key, value in metadata.items()):
            raise InputError("the metadata did not survive writing", file=path)
    return ExportReport(path, time.perf_counter() - started, largest, metadata)


def _statement(potential: Potential, written: Evaluate, made: Tabulated, allowed: float) -> str:
    """What tables a file has, with the errors of the file itself, as JSON.

    Raises:
        InputError: when these are larger than allowed.
    """

    def found(graph: AtomGraph) -> Predictions:
        return Predictions(**from_edges(graph, written(pair_style_inputs(graph))))

    errors = deviation(potential, potential, found)
    if not errors.largest <= allowed:
        single = potential.model.dtype == torch.float32
        raise InputError(
            f"with tables it is off by {errors.energy:.1e} eV and {errors.force:.1e} eV/Å, {allowed:g} was allowed; "
            "most of that is rounding",
            key="table",
            hint=f"give {2 * errors.largest:.0e}" + (", or --dtype float64" if single else ""),
        )
    return json.dumps(
        {
            "allowed_eV_and_eV_per_A": allowed,
            "energy_error_eV": float(f"{errors.energy:.2g}"),
            "force_error_eV_per_A": float(f"{errors.force:.2g}"),
            "intervals": made.intervals,
            "functions": made.functions,
            "species_pairs": made.pairs,
        }
    )


def pair_style_function(model: NativeModel) -> Evaluate:
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
