"""How far a trained potential can be trusted: the posterior of its last layer, calibrated.

The covariance of the last weights is that of Bayesian linear regression on their features,
``C = (sum_e f f^T / s_E^2 + sum_c g g^T / s_F^2 + r I)^-1`` with f the features of an energy per atom and g those of a
component of a force over the training structures; the variance of a prediction is ``f^T C f`` (F. Bigi, S. Chong,
M. Ceriotti, F. Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024), "LLPR"). It needs one pass over the training
data and no second training. On validation structures the regularisation r, a factor and two exponents are chosen by
likelihood, and a conformal quantile says which multiple of the uncertainty covers 90 % of the errors. The second
exponent is that of a structure as a whole: where all of it is unusual, as in a hotter simulation, the error of each of
its forces is larger than the force's own variance says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import batches_of
from pimlip_zoo.datasets.readers.numpy_file import open_npz
from pimlip_zoo.errors import InputError, reading
from pimlip_zoo.files import content_hash, replacing
from pimlip_zoo.graph import AtomGraph, sum_by_structure
from pimlip_zoo.labelling.last_layer import LastLayer
from pimlip_zoo.models.potential import Potential

COVERAGE = 0.9
"""Share of the errors that the conformal quantile covers."""
EXACT = 96
"""Up to so many weights the variance of forces is exact; above, that of this many draws of the weights."""
_BATCH = 8
_GRID = 10.0 ** np.arange(-6.0, 3.0)
"""Regularisation, in units of the mean diagonal of the data's part."""
_EXPONENTS = tuple(0.5 + 0.1 * k for k in range(21))
_SHARED = tuple(0.25 * k for k in range(13))
_MANY, _STRUCTURES = 200, 20
"""Errors, and structures, from which the exponents can be learnt; of fewer, they are 1 and 0."""
_VERSION = 2


@dataclass(frozen=True)
class Calibration:
    """How raw uncertainties become what errors are like: ``factor * raw ** exponent * structure ** shared``."""

    factor: float
    exponent: float
    """Errors may grow faster than raw uncertainties, far from what is known above all."""
    quantile: float
    """This many calibrated uncertainties cover :data:`COVERAGE` of the errors."""
    count: int
    """Errors that it rests on; 0: none were there."""
    shared: float = 0.0
    """Exponent of the root mean square over the atoms of the structure."""

    def __call__(
        self, raw: NDArray[np.float64], structure: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """What errors are like, as a root mean square.

        Args:
            raw: (n,) uncertainties.
            structure: (n,) the root mean square of those of the structure; None: of structures themselves.
        """
        values: NDArray[np.float64] = self.factor * raw**self.exponent
        return values if structure is None or self.shared == 0.0 else values * structure**self.shared


def calibrate(
    errors: NDArray[np.float64],
    raw: NDArray[np.float64],
    dimensions: int = 1,
    structure: NDArray[np.float64] | None = None,
) -> Calibration:
    """A factor and exponents by likelihood, and a split-conformal quantile.

    Args:
        errors: (n,) not negative; others, such as NaN, are left out.
        raw: (n,) uncertainties.
        dimensions: of the vectors whose lengths the errors are.
        structure: (n,) the root mean square of the uncertainties in the structure of each; None: no such exponent.

    >>> calibrate(np.array([2.0, 2.0]), np.array([1.0, 1.0])).factor
    2.0
    """
    known = np.isfinite(errors) & (raw > 0)
    errors, raw = errors[known], raw[known]
    whole = np.ones_like(raw) if structure is None else structure[known]
    count = len(errors)
    if count == 0:
        return Calibration(1.0, 1.0, math.sqrt(2.71), 0)
    exponents = _EXPONENTS if count >= _MANY else (1.0,)
    of_structures = _SHARED if len(np.unique(whole)) >= _STRUCTURES and count >= _MANY else (0.0,)
    exponent, shared = min(
        itertools.product(exponents, of_structures),
        key=lambda powers: _cost(errors, raw ** powers[0] * whole ** powers[1], dimensions),
    )
    ratio = errors / (raw**exponent * whole**shared)
    factor = _rms(ratio) or 1e-12
    rank = min(math.ceil((count + 1) * COVERAGE), count)
    return Calibration(factor, exponent, float(np.sort(ratio)[rank - 1]) / factor, count, shared)


def of_its_structure(raw: NDArray[np.float64], structure: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) the root mean square over all atoms of the structure that each belongs to.

    Args:
        raw: (n,) uncertainties of atoms.
        structure: (n,) which structure an atom is of.

    >>> of_its_structure(np.array([3.0, 4.0, 2.0]), np.array([0, 0, 1])).round(3).tolist()
    [3.536, 3.536, 2.0]
    """
    count = np.maximum(np.bincount(structure), 1)
    mean: NDArray[np.float64] = np.sqrt(np.bincount(structure, raw**2) / count)
    return mean[structure]


def covered(
    errors: NDArray[np.float64], uncertainties: NDArray[np.float64], quantile: float
) -> dict[str, Any]:
    """Errors beside uncertainties.

    Args:
        errors: (n,) not negative.
        uncertainties: (n,) calibrated.
        quantile: of the calibration.

    Returns:
        correlation (Spearman's), coverage, rms_error, rms_uncertainty, and bins of ``[uncertainty, error]``.
    """
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    order = np.array_split(np.argsort(uncertainties), min(10, len(errors)))
    constant = np.ptp(errors) == 0 or np.ptp(uncertainties) == 0
    return {
        "correlation": None if constant else float(spearmanr(errors, uncertainties).statistic),
        "coverage": float(np.mean(errors <= quantile * uncertainties)),
        "rms_error": _rms(errors),
        "rms_uncertainty": _rms(uncertainties),
        "bins": [[_rms(uncertainties[part]), _rms(errors[part])] for part in order],
    }


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


class Posterior:
    """Uncertainties of energies and forces of a potential.

    Args:
        potential: that the posterior was fitted to.
        root: (D, D), the covariance of the weights is ``root @ root.T``.
        energy: calibration of energies of structures.
        forces: calibration of forces of atoms, as lengths of vectors.
    """

    def __init__(self, potential: Potential, root: Tensor, energy: Calibration, forces: Calibration) -> None:
        self.layer = LastLayer(potential)
        self.root, self.energy, self.forces = root.double(), energy, forces

    def energy_uncertainty(self, graph: AtomGraph) -> NDArray[np.float64]:
        """(M,) eV, what the error of each structure's energy is like (root mean square)."""
        total = sum_by_structure(self.layer.features(graph), graph)
        return self.energy(torch.linalg.vector_norm(total @ self.root, dim=1).numpy())

    def forces_uncertainty(self, graph: AtomGraph) -> NDArray[np.float64]:
        """(N,) eV/Å, what the length of the error of each atom's force is like."""
        changes = self.layer.forces(graph, self.directions())
        raw = torch.sqrt(changes.square().sum(dim=(0, 2))).numpy()
        return self.forces(raw, of_its_structure(raw, graph.batch.numpy()))

    def directions(self) -> Tensor:
        """(K, D) whose outer products add up to the covariance of the weights, or nearly where there are many."""
        count = len(self.layer)
        if count <= EXACT:
            return self.root.T.contiguous()
        generator = torch.Generator().manual_seed(0)  # the same draws, so that uncertainties are functions
        draws = torch.randn((EXACT, count), dtype=torch.float64, generator=generator)
        return draws @ self.root.T / math.sqrt(EXACT)


def fit_posterior(potential: Potential, train: Sequence[Frame], valid: Sequence[Frame]) -> Posterior:
    """Fit to the training structures, calibrate on others.

    Args:
        potential: trained.
        train: structures with labels.
        valid: structures with labels that were not trained on.

    Raises:
        InputError: when no training structure has a label, or the potential has no last layer that is known.
    """
    layer = LastLayer(potential)
    noise_energy, noise_forces = _noise(potential, valid)
    size = len(layer)
    data = torch.zeros((size, size), dtype=torch.float64)
    unit = torch.eye(size, dtype=torch.float64)
    for batch in batches_of(train, potential.species, potential.cutoff, _BATCH):
        atoms = torch.bincount(batch.graph.batch, minlength=batch.graph.num_graphs)
        known = ~torch.isnan(batch.labels.energy)
        f = sum_by_structure(layer.features(batch.graph), batch.graph) / atoms.unsqueeze(1)
        data += f[known].T @ f[known] / noise_energy**2
        labelled = ~torch.isnan(batch.labels.forces).any(dim=1)
        if labelled.any():
            g = layer.forces(batch.graph, unit)[:, labelled].reshape(size, -1)
            data += g @ g.T / noise_forces**2
    if not float(data.diagonal().sum()) > 0:
        raise InputError("no training structure has an energy or forces", key="uncertainty")
    return _calibrated(potential, layer, data, valid)


def _calibrated(potential: Potential, layer: LastLayer, data: Tensor, valid: Sequence[Frame]) -> Posterior:
    """Choose the regularisation by the likelihood of the validation errors; then factors and quantiles."""
    energies, forces, structure, energy_errors, force_errors = _validation(potential, layer, valid)
    unit = float(data.diagonal().mean())
    values, vectors = torch.linalg.eigh(data)
    best: tuple[float, Tensor, Calibration, Calibration] | None = None
    for strength in _GRID:
        root = vectors / torch.sqrt(values.clamp(min=0) + strength * unit)
        raw_energy = torch.linalg.vector_norm(energies @ root, dim=1).numpy()
        raw_forces = _raw_forces(forces, root)
        whole = of_its_structure(raw_forces, structure)
        parts = (calibrate(energy_errors, raw_energy), calibrate(force_errors, raw_forces, 3, whole))
        if parts[1].count:
            found, errors, raw, dimensions = parts[1], force_errors, raw_forces, 3
        else:
            found, errors, raw, whole, dimensions = parts[0], energy_errors, raw_energy, raw_energy, 1
        known = np.isfinite(errors) & (raw > 0)
        cost = _cost(errors[known], found(raw, whole)[known], dimensions)
        if best is None or cost < best[0]:
            best = (cost, root, *parts)
    assert best is not None
    _, root, energy, of_forces = best
    if of_forces.count == 0:
        of_forces = replace(energy, count=0)
    if energy.count == 0 and of_forces.count:  # a structure's energy has no part in what its forces share
        energy = replace(calibrate(force_errors, _raw_forces(forces, root), 3), count=0)
    return Posterior(potential, root, energy, of_forces)


def _raw_forces(features: Tensor, root: Tensor) -> NDArray[np.float64]:
    """(A,) not calibrated, from the features (A, D, 3) of forces and the root (D, D) of the covariance."""
    spread = torch.einsum("ndc,de->nec", features, root).square().sum(dim=(1, 2))
    found: NDArray[np.float64] = torch.sqrt(spread).numpy()
    return found


def _cost(errors: NDArray[np.float64], raw: NDArray[np.float64], dimensions: int) -> float:
    """Mean negative logarithm of a normal likelihood, at the best factor; raw uncertainties are more than 0."""
    if not len(errors):
        return 0.0
    factor = _rms(errors / raw) or 1e-12
    return dimensions * float(np.mean(np.log(factor * raw)))


def _validation(
    potential: Potential, layer: LastLayer, valid: Sequence[Frame]
) -> tuple[Tensor, Tensor, NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Features (M, D) of energies and (A, D, 3) of forces, structures of atoms (A,), errors (M,) eV and (A,) eV/Å.

    The error of a force without a label is NaN.
    """
    unit = torch.eye(len(layer), dtype=torch.float64)
    energies, forces, structures, energy_errors, force_errors = [], [], [], [], []
    before = 0
    for batch in batches_of(valid, potential.species, potential.cutoff, _BATCH):
        with torch.no_grad():
            predicted = potential(batch.graph, forces=True, virial=False)
        known = ~torch.isnan(batch.labels.energy)
        energies.append(sum_by_structure(layer.features(batch.graph), batch.graph)[known])
        energy_errors.append((batch.labels.energy - predicted.energy).abs()[known])
        if not torch.isnan(batch.labels.forces).all():
            forces.append(layer.forces(batch.graph, unit).transpose(0, 1))
            force_errors.append(torch.linalg.vector_norm(batch.labels.forces - predicted.forces, dim=1))
            structures.append(batch.graph.batch + before)
            before += batch.graph.num_graphs
    none = torch.zeros((0, len(layer)), dtype=torch.float64)
    return (
        torch.cat([none, *energies]),
        torch.cat([none.reshape(0, len(layer), 1).expand(0, len(layer), 3), *forces]),
        torch.cat([torch.zeros(0, dtype=torch.int64), *structures]).numpy(),
        torch.cat([none[:, 0], *energy_errors]).numpy(),
        torch.cat([none[:, 0], *force_errors]).numpy(),
    )


def _noise(potential: Potential, frames: Sequence[Frame]) -> tuple[float, float]:
    """Root mean square errors: eV/atom and eV/Å by component."""
    energy: list[Tensor] = []
    forces: list[Tensor] = []
    for batch in batches_of(frames, potential.species, potential.cutoff, _BATCH):
        with torch.no_grad():
            predicted = potential(batch.graph, forces=True, virial=False)
        atoms = torch.bincount(batch.graph.batch, minlength=batch.graph.num_graphs)
        energy.append(((batch.labels.energy - predicted.energy) / atoms).square())
        forces.append((batch.labels.forces - predicted.forces).square().reshape(-1))
    return _root_mean(energy, 1e-3), _root_mean(forces, 1e-2)


def _root_mean(parts: list[Tensor], otherwise: float) -> float:
    values = torch.cat(parts) if parts else torch.zeros(0)
    values = values[~torch.isnan(values)]
    return max(float(values.mean().sqrt()), 1e-9) if len(values) else otherwise


def posterior_path(checkpoint: Path) -> Path:
    """Where the posterior of a checkpoint is kept: beside it."""
    return checkpoint.with_name(f"{checkpoint.stem}.uncertainty.npz")


def save_posterior(posterior: Posterior, checkpoint: Path) -> Path:
    """Keep it beside the checkpoint, with the hash of the checkpoint that it belongs to."""
    path = posterior_path(checkpoint)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            version=_VERSION,
            checkpoint=content_hash(checkpoint),
            root=posterior.root.numpy(),
            energy=astuple(posterior.energy),
            forces=astuple(posterior.forces),
        )
    return path


def load_posterior(potential: Potential, checkpoint: Path) -> Posterior | None:
    """The posterior that is kept beside a checkpoint; None where there is none, or it is of another checkpoint.

    Raises:
        InputError: for a file that is damaged.
    """
    path = posterior_path(checkpoint)
    if not path.exists():
        return None
    with reading(path), open_npz(path) as content:
        if int(content["version"]) not in (1, _VERSION) or str(content["checkpoint"]) != content_hash(
            checkpoint
        ):
            return None
        root = torch.from_numpy(np.asarray(content["root"], dtype=np.float64))
        energy, forces = (_calibration(content[name]) for name in ("energy", "forces"))
        if not bool(torch.isfinite(root).all()):
            raise InputError("has values that are not finite")
    posterior = Posterior(potential, root, energy, forces)
    if root.shape != (len(posterior.layer),) * 2:
        raise InputError("does not fit the potential", file=path, hint="remove it, and it is made anew")
    return posterior


def _calibration(values: Any) -> Calibration:
    factor, exponent, quantile, count, *shared = (float(value) for value in values)
    return Calibration(factor, exponent, quantile, int(count), *shared)  # version 1 has no last one
