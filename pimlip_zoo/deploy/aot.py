"""A potential compiled ahead of time: TorchScript's successor, C++ code in a ``.pt2`` file.

The energy and its derivative are traced together into one graph of plain operations, with sizes left open, and
AOTInductor compiles that graph. The file is bound to the version of torch and to the kind of processor.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pimlip_zoo.compiled.kernels import use_kernels
from pimlip_zoo.deploy.metadata import AOT_ENTRY, export_metadata, read_metadata, torch_version
from pimlip_zoo.deploy.module import PairStyleModule
from pimlip_zoo.deploy.selfcheck import check_structures, compare, pair_style_inputs
from pimlip_zoo.deploy.torchscript import ExportReport, prepared
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing

if TYPE_CHECKING:
    from pimlip_zoo.models.potential import Potential

log = logging.getLogger(__name__)

INPUTS = ("edge_vectors", "edge_index", "atom_types", "is_local")
OUTPUTS = ("atomic_energy", "edge_gradient", "forces")


def export_aot(
    potential: Potential,
    path: str | os.PathLike[str],
    *,
    name: str = "",
    dtype: torch.dtype | None = None,
    training: Mapping[str, object] | None = None,
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> ExportReport:
    """Compile a potential for ``pair_style pimlip`` and check what was compiled.

    Args:
        potential: with the weights to export; not changed.
        path: where to; should end in ``.pimlip.pt2``; not in ``.nequip.pt2``, which other pair styles take for theirs.
        name: of the architecture, for the file's metadata.
        dtype: precision inside, the potential's own by default; the border is float64 always.
        training: where the weights come from, anything that JSON takes.
        device: where the file will run, cpu or cuda.
        threads: of the compiled loops; it cannot be changed later. With one, sums over edges need no atomic
            operations, and ranks divide the work.

    Raises:
        InputError: when there is no C++ compiler, the architecture cannot be traced, or the path cannot be
            written.
        ExportError: when the file computes something else than the potential.
    """
    started = time.perf_counter()
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError("a compiled model ends in .pt2", file=path, hint="give -o NAME.pimlip.pt2")
    if path.name.endswith(".nequip.pt2"):
        raise InputError(
            "pair_style nequip and allegro take .nequip.pt2 for a file of nequip-compile, and abort on this one",
            file=path,
            hint="give -o NAME.pimlip.pt2 for pair_style pimlip, or --format torchscript for theirs",
        )
    if not path.parent.is_dir():
        raise InputError("there is no such folder", file=path.parent, hint="make it, or give another path")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise InputError("there is no C++ compiler", key="format", hint="install g++, or use torchscript")
    ready = prepared(potential, dtype)
    metadata = export_metadata(
        ready, name=name or type(potential.model).__name__, dtype=ready.model.dtype, training=training or {}
    )
    log.info("compiling the graph of energies and forces; this takes about a minute")
    with replacing(path) as scratch:
        _compile(ready, scratch, metadata, torch.device(device), threads)
        deviation = compare(ready, load_compiled(scratch), by_positions=False)
        written = read_metadata(scratch)
        if any(written.get(key) != value for key, value in metadata.items()):
            raise InputError("the metadata did not survive writing", file=path)
    return ExportReport(path, time.perf_counter() - started, deviation, metadata)


def load_compiled(path: str | os.PathLike[str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The function of a compiled file, with the inputs and outputs of ``pair_style pimlip``.

    Raises:
        InputError: when this torch cannot load it.
    """
    from torch._inductor.package.package import load_package  # the public loader takes no name of an entry

    metadata = read_metadata(path)
    written, here = metadata["torch_version"], torch_version()
    if written.rpartition(".")[0] != here.rpartition(".")[0]:  # compiled code is bound to its torch
        raise InputError(
            f"compiled with torch {written}, and this is torch {here}", file=path, hint="export it again"
        )
    try:
        module = load_package(str(path), AOT_ENTRY)
    except RuntimeError as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"cannot be loaded: {reason}", file=path, hint="export it again") from error
    cutoff = float(metadata["r_max"])

    def evaluate(data: dict[str, Tensor]) -> dict[str, Tensor]:
        atoms, edges = len(data["atom_types"]), data["edge_index"].shape[1]
        arguments = _padded(data, 2.0 * cutoff) if atoms < 2 or edges < 2 else [data[key] for key in INPUTS]
        with torch.no_grad():
            values = module(*arguments)
        rows = {"atomic_energy": atoms, "edge_gradient": edges, "forces": atoms}
        return {key: value[: rows[key]] for key, value in zip(OUTPUTS, values, strict=False)}

    return evaluate


class _EnergyAndGradient(nn.Module):
    """What is traced: tensors in the order of INPUTS to tensors in the order of OUTPUTS."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.module = PairStyleModule(potential)

    def forward(
        self, vectors: Tensor, edge_index: Tensor, species: Tensor, is_local: Tensor
    ) -> tuple[Tensor, ...]:
        vectors = vectors.detach().requires_grad_(True)
        energy, forces = self.module.energies(vectors, edge_index, species)
        (gradient,) = torch.autograd.grad((energy * is_local).sum(), vectors)
        outputs = (energy.unsqueeze(1).detach(), gradient.detach())
        return outputs if forces is None else (*outputs, forces.detach())


def _compile(
    potential: Potential, path: Path, metadata: Mapping[str, str], device: torch.device, threads: int
) -> None:
    # The public aoti_compile_and_package writes to a path alone, and has no place for our entry point and metadata.
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti
    from torch.export import Dim
    from torch.fx.experimental.proxy_tensor import make_fx

    module = _EnergyAndGradient(potential).to(device)
    example = [value.to(device) for value in _example(potential)]
    with use_kernels("reference"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
            atoms, edges = Dim("atoms", min=2), Dim("edges", min=2)
            shapes = ({0: edges}, {1: edges}, {0: atoms}, {0: atoms})
            with torch.no_grad():
                program = torch.export.export(traced, tuple(example), dynamic_shapes=shapes, strict=False)
                files = aot_compile(
                    program.module(),
                    tuple(example),
                    options={
                        "aot_inductor.package": True,
                        "aot_inductor.metadata": dict(metadata),
                        "cpp.threads": threads,
                    },
                )
            # Not into the file itself: where that is full, torch's writer ends the process.
            package = BytesIO()
            package_aoti(package, {AOT_ENTRY: files})  # type: ignore[dict-item]
        except Exception as error:  # the compiler's exceptions have no base class in common
            lines = [line for line in str(error).strip().split("\n") if line.strip()]
            reason = lines[0].strip() if lines else type(error).__name__
            raise InputError(
                f"{type(potential.model).__name__} cannot be compiled ahead of time: {reason}",
                key="format",
                hint="use --format torchscript",
            ) from error
    path.write_bytes(package.getbuffer())


def _example(potential: Potential) -> list[Tensor]:
    """Inputs of sizes that are no other dimension of a model, so that none is taken for a constant."""
    graphs = dict(check_structures(potential.cutoff, len(potential.species)))
    data = pair_style_inputs(graphs["an open cluster"])
    data["is_local"][-1] = 0.0
    return [data[key] for key in INPUTS]


def _padded(data: dict[str, Tensor], length: float) -> list[Tensor]:
    """With two more atoms out of each other's sight: compiled sizes are two or more."""
    atoms = len(data["atom_types"])
    far = torch.tensor([[length, 0.0, 0.0], [-length, 0.0, 0.0]], dtype=torch.float64)
    pair = torch.tensor([[atoms, atoms + 1], [atoms + 1, atoms]])
    extra: dict[str, Any] = {
        "edge_vectors": torch.cat([data["edge_vectors"], far]),
        "edge_index": torch.cat([data["edge_index"], pair], dim=1),
        "atom_types": torch.cat([data["atom_types"], torch.zeros(2, dtype=torch.int64)]),
        "is_local": torch.cat([data["is_local"], torch.zeros(2, dtype=torch.float64)]),
    }
    return [extra[key] for key in INPUTS]
