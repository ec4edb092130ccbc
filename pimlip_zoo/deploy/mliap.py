"""A strictly local potential for LAMMPS' own ``pair_style mliap unified``, through LAMMPS' Python.

LAMMPS unpickles the file it is given: this format is LAMMPS' own, and the only pickle that this package writes. Reading
a pickle runs what is named in it, so only files of trusted people belong there. Ours names one class,
:class:`MLIAPModel`, and holds the bytes of an ordinary TorchScript export.
"""

from __future__ import annotations

import io
import os
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pimlip_zoo.deploy.metadata import read_metadata
from pimlip_zoo.deploy.selfcheck import compare
from pimlip_zoo.deploy.torchscript import ExportReport, export_torchscript, prepared
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pimlip_zoo.models.potential import Potential


class MLIAPModel:
    """What ``pair_style mliap unified`` calls: the interface of ``lammps.mliap.mliap_unified_abc.MLIAPUnified``.

    It does not derive from that class, so that a file can be written where there is no LAMMPS.

    Args:
        content: the bytes of a file written by :func:`~pimlip_zoo.deploy.torchscript.export_torchscript`.
        element_types: chemical symbols, in the order of the model's species.
        cutoff: Å.
    """

    def __init__(self, content: bytes, element_types: list[str], cutoff: float) -> None:
        self.interface: object = None  # LAMMPS puts its own object here
        self.element_types = element_types
        self.rcutfac = 0.5 * cutoff  # LAMMPS multiplies by the sum of two radii of one
        self.ndescriptors = self.nparams = 1  # LAMMPS wants numbers; descriptors stay inside the model
        self._content = content
        self._module: Any = None
        self._device = torch.device("cpu")

    def __reduce__(self) -> tuple[type[MLIAPModel], tuple[bytes, list[str], float]]:
        """The file names this class and holds bytes, strings and a number."""
        return MLIAPModel, (self._content, self.element_types, 2.0 * self.rcutfac)

    def compute_descriptors(self, data: Any) -> None:
        """Called by LAMMPS before the forces; nothing to do."""

    def compute_gradients(self, data: Any) -> None:
        """Called by LAMMPS before the forces; nothing to do."""

    def compute_forces(self, data: Any) -> None:
        """Fill in energies and pair forces.

        Args:
            data: LAMMPS' arrays. Read: ``ntotal``, ``nlistatoms``, ``npairs``, ``elems``, ``iatoms``, ``pair_i``,
                ``pair_j``, ``rij``; written: ``energy``, ``eatoms``, and the pair forces ``dE/dr_ij``, from which
                LAMMPS makes forces and virial.
        """
        count = int(data.nlistatoms)
        if count == 0:
            data.energy = 0.0
            return
        elements = torch.as_tensor(data.elems)
        device = elements.device
        atoms = torch.as_tensor(data.iatoms, device=device)[:count].to(torch.int64)
        weight = torch.zeros(int(data.ntotal), dtype=torch.float64, device=device)
        weight[atoms] = (elements[atoms] >= 0).to(torch.float64)  # NULL in pair_coeff: not ours
        inputs = {"atom_types": elements.to(torch.int64).clamp(min=0), "is_local": weight}
        pairs = int(data.npairs)
        order = torch.zeros(0, dtype=torch.int64, device=device)
        inputs["edge_index"] = torch.zeros((2, 0), dtype=torch.int64, device=device)
        inputs["edge_vectors"] = torch.zeros((0, 3), dtype=torch.float64, device=device)
        if pairs > 0:
            index = torch.stack([torch.as_tensor(data.pair_i), torch.as_tensor(data.pair_j)]).to(torch.int64)
            order = torch.argsort(index[0], stable=True)
            inputs["edge_index"] = index[:, order]
            inputs["edge_vectors"] = torch.as_tensor(data.rij).to(torch.float64)[order]
        result = self._on(device)(inputs)
        energies = (result["atomic_energy"].detach()[:, 0] * weight)[atoms]
        _set_energies(data, energies)
        if pairs > 0:
            forces = torch.empty((pairs, 3), dtype=torch.float64, device=device)
            forces[order] = result["edge_gradient"].detach()
            data.update_pair_forces(forces if forces.is_cuda else forces.numpy())

    def _on(self, device: torch.device) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        """The module, where LAMMPS has its arrays."""
        if self._module is None or self._device != device:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module = torch.jit.load(io.BytesIO(self._content), map_location=device)
            self._device = device
        return self._module


def _set_energies(data: Any, energies: Tensor) -> None:
    data.energy = float(energies.sum())
    try:
        data.eatoms = energies.cpu().numpy()
    except AttributeError:  # with KOKKOS it cannot be assigned, only written into
        torch.as_tensor(data.eatoms, device=energies.device)[: len(energies)].copy_(energies)


def export_mliap(
    potential: Potential,
    path: str | os.PathLike[str],
    *,
    name: str = "",
    dtype: torch.dtype | None = None,
    training: Mapping[str, object] | None = None,
) -> ExportReport:
    """Write a strictly local potential for ``pair_style mliap unified``, and check what was written.

    Args:
        potential: with the weights to export; not changed.
        path: where to; LAMMPS reads files that end in ``.pt`` or ``.pth`` in another way, so neither of these.
        name: of the architecture.
        dtype: precision inside, the potential's own by default; the border is float64.
        training: where the weights come from, anything that JSON takes.

    Raises:
        InputError: for message passing or a direct force head, which this interface has no room for, or a path that
            cannot be written.
        ExportError: when the file computes something else than the potential.
    """
    started = time.perf_counter()
    path = Path(path)
    depth = int(potential.model.interaction_depth)
    if depth > 1:
        raise InputError(
            f"pair_style mliap hands over direct neighbours, this model passes messages over {depth} hops",
            key="format",
            hint="use --format torchscript or aot with pair_style pimlip",
        )
    if potential.is_direct:
        raise InputError("pair_style mliap takes pair forces, not a direct force head", key="format")
    if path.suffix in (".pt", ".pth"):
        raise InputError(
            "LAMMPS takes this ending for a file of torch.save", file=path, hint="use .mliap.pkl"
        )
    if not path.parent.is_dir():
        raise InputError("there is no such folder", file=path.parent, hint="make it, or give another path")
    with replacing(path) as scratch:
        inner = scratch.with_name("model.nequip.pth")
        export_torchscript(potential, inner, name=name, dtype=dtype, training=training)
        metadata, content = read_metadata(inner), inner.read_bytes()
        model = MLIAPModel(content, metadata["type_names"].split(), float(metadata["r_max"]))
        scratch.write_bytes(pickle.dumps(model, protocol=4))
        again = pickle.loads(scratch.read_bytes())  # noqa: S301 - written a line above
        deviation = compare(prepared(potential, dtype), lambda data: _call(again, data), by_positions=False)
    return ExportReport(path, time.perf_counter() - started, deviation, metadata)


class _Arrays:
    """One rank without ghosts, in place of LAMMPS' data, for the check of what was written."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.ntotal = self.nlistatoms = len(inputs["atom_types"])
        self.npairs = inputs["edge_index"].shape[1]
        self.elems = inputs["atom_types"].to(torch.int32).numpy()
        self.iatoms = torch.arange(self.ntotal, dtype=torch.int32).numpy()
        self.pair_i, self.pair_j = inputs["edge_index"].to(torch.int32).numpy()
        self.rij = inputs["edge_vectors"].numpy()
        self.energy = 0.0
        self.eatoms: NDArray[Any] | None = None
        self.pair_forces: Tensor = torch.zeros((self.npairs, 3), dtype=torch.float64)

    def update_pair_forces(self, forces: NDArray[Any]) -> None:
        self.pair_forces = torch.as_tensor(forces)


def _call(model: MLIAPModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    data = _Arrays(inputs)
    model.compute_forces(data)
    return {"atomic_energy": torch.as_tensor(data.eatoms).unsqueeze(1), "edge_gradient": data.pair_forces}
