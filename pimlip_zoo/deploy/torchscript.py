"""A potential as one TorchScript file that every pair style takes.

TorchScript is what LAMMPS builds out there load. It is deprecated in torch and ends with Python 3.13; the
file that follows it is written by :mod:`pimlip_zoo.deploy.aot`.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pimlip_zoo.deploy.metadata import (
    OPTIONAL_KEYS,
    REQUIRED_KEYS,
    export_metadata,
    read_metadata,
    torch_version,
)
from pimlip_zoo.deploy.module import PairStyleModule
from pimlip_zoo.deploy.selfcheck import compare
from pimlip_zoo.errors import InputError, no_such_file
from pimlip_zoo.files import check_archive, replacing

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    path: Path
    seconds: float
    deviation: float
    """Largest relative deviation between the potential and the file, see ``selfcheck``."""
    metadata: Mapping[str, str]


def export_torchscript(
    potential: Potential,
    path: str | os.PathLike[str],
    *,
    name: str = "",
    dtype: torch.dtype | None = None,
    training: Mapping[str, object] | None = None,
) -> ExportReport:
    """Write a potential for ``pair_style pimlip``, ``nequip`` and ``allegro``, and check what was written.

    The file appears under its name only after it has been read back and has agreed with the potential.

    Args:
        potential: with the weights to export; not changed.
        path: where to; should end in ``.nequip.pth``, which ``pair_style nequip`` insists on.
        name: of the architecture, for the file's metadata.
        dtype: precision inside, the potential's own by default; the border is float64 always.
        training: where the weights come from, anything that JSON takes.

    Raises:
        InputError: when the architecture cannot be scripted, or the path cannot be written.
        ExportError: when the file computes something else than the potential.
    """
    started = time.perf_counter()
    path = Path(path)
    ready = prepared(potential, dtype)
    metadata = export_metadata(
        ready, name=name or type(potential.model).__name__, dtype=ready.model.dtype, training=training or {}
    )
    scripted = _script(ready)
    if not path.parent.is_dir():
        raise InputError("there is no such folder", file=path.parent, hint="make it, or give another path")
    with replacing(path) as scratch:
        # Not into the file itself: where that is full, torch's writer ends the process.
        package = BytesIO()
        extra = {key: text.encode() for key, text in metadata.items()}
        torch.jit.save(scripted, package, _extra_files=extra)
        scratch.write_bytes(package.getbuffer())
        module, written = load_torchscript(scratch)
        deviation = compare(ready, module)
        if written != metadata:
            raise InputError("the metadata did not survive writing", file=path)
    return ExportReport(path, time.perf_counter() - started, deviation, metadata)


def prepared(potential: Potential, dtype: torch.dtype | None = None, *, electrons: bool = False) -> Potential:
    """A copy on the CPU, in evaluation mode and in the precision wanted.

    Args:
        potential: with the weights to export; not changed.
        dtype: precision; the potential's own by default.
        electrons: charge and multiplicity may still be open.

    Raises:
        InputError: for another precision than float32 or float64.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"cannot export to {dtype}", key="dtype", hint="float32 or float64")
    if potential.model.electrons_are_open and not electrons:
        raise InputError(
            "the model was trained on charges and multiplicities, and a file is for one of each",
            key="charge",
            hint="--charge Q --multiplicity M, 0 and 1 of neutral molecules without unpaired electrons",
        )
    ready: Potential = copy.deepcopy(potential).cpu().eval()
    return ready.set_dtype(dtype or potential.model.dtype)


def load_torchscript(path: str | os.PathLike[str]) -> tuple[Any, dict[str, str]]:
    """Read an exported file back: the module, callable with a dictionary of tensors, and its metadata.

    Raises:
        InputError: when it is missing, truncated, or no file of ours.
    """
    extra: dict[str, Any] = dict.fromkeys((*REQUIRED_KEYS, *OPTIONAL_KEYS), "")
    if not Path(path).is_file():
        raise no_such_file(path)
    check_archive(path, "not a complete TorchScript file", hint="export it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0].split(". This is an internal")[0]
        raise InputError(f"{_what_is_wrong(path)}: {reason}", file=path, hint="export it again") from error
    metadata = {key: text.decode() if isinstance(text, bytes) else str(text) for key, text in extra.items()}
    metadata = {key: text for key, text in metadata.items() if text or key in REQUIRED_KEYS}
    if not metadata["pimlip_format"]:
        raise InputError("has no metadata of pimlip-zoo", file=path, hint="write it with `pimlip-zoo export`")

    def evaluate(data: dict[str, Tensor]) -> dict[str, Tensor]:
        # Freezing takes detach() out of the module.
        return {key: value.detach() for key, value in module(data).items()}

    return evaluate, metadata


def _what_is_wrong(path: str | os.PathLike[str]) -> str:
    try:
        written = read_metadata(path)["torch_version"]
    except InputError:
        return "not a complete TorchScript file"
    if written == torch_version():
        return "not a complete TorchScript file"
    return f"written by torch {written}, which this torch {torch_version()} cannot load"


def _script(potential: Potential) -> Any:
    module = PairStyleModule(potential)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            frozen = torch.jit.freeze(torch.jit.script(module))
    except Exception as error:  # the compiler's own exceptions have no base class in common
        lines = [line for line in str(error).strip().split("\n") if line.strip()]
        reason = lines[0].strip() if lines else type(error).__name__
        raise InputError(
            f"{type(potential.model).__name__} cannot be converted to TorchScript: {reason}",
            key="format",
            hint="make its forward scriptable, or use --format aot",
        ) from error
    # Freezing takes it away, and who freezes what he loads, as nequip does, asks it whether he may.
    frozen._c._register_attribute("training", torch._C.BoolType.get(), False)  # noqa: SLF001
    return frozen
