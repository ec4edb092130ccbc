"""A potential against labelled data: errors, and the pairs of values that a parity plot shows."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pimlip_zoo.compiled.kernels import plain_torch
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.neighbours import batches_of, frame_to_sample
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.unseen import unseen_in_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import write_json
from pimlip_zoo.graph import Batch, Predictions, collate, stress_from_virial
from pimlip_zoo.labelling.uncertainty import Posterior, covered
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.report.parity import save_pairs
from pimlip_zoo.report.remarks import remarks_on
from pimlip_zoo.training.checkpoint import baseline_of, load_potential
from pimlip_zoo.training.metrics import ErrorStatistics
from pimlip_zoo.weak_labels.pool import corrections

log = logging.getLogger("pimlip_zoo")

_WITH_UNCERTAINTY = 10
"""Structures whose uncertainties are computed at once."""
_SOME = 200


@dataclass(frozen=True)
class Evaluation:
    """Errors of a potential on a data set."""

    summary: dict[str, Any]
    """As ``eval --json`` writes it, in eV and Å."""
    pairs: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    """Reference and predicted values of energy_per_atom, forces, stress where labelled, flat."""


def evaluate(
    potential: Potential,
    spec: str,
    *,
    batch_size: int = 50,
    model: str = "",
    baseline: str | None = None,
    trust: bool = False,
    known: bool = False,
) -> Evaluation:
    """Evaluate on a DATA specification; charges that it states and the potential does not see are said.

    Args:
        potential: ready for prediction.
        spec: what ``--data`` takes.
        batch_size: structures evaluated at once.
        model: name that the summary carries.
        baseline: the cheap calculator that the potential is a correction to; its labels are taken off those of the
            data, so that the errors are those of the sum.
        trust: call the baseline when it is the name of a function.
        known: the data are those of a training, which said itself what charges there are.

    Raises:
        InputError: for data without labels, with species that the potential does not know, or for a baseline that
            is not trusted.
    """
    frames = _labelled_frames(spec)
    if not (known or potential.model.electrons_are_open) and (unseen := unseen_in_frames(frames)) is not None:
        log.warning("%s: %s", spec, unseen)
    if baseline is not None:
        frames = corrections(frames, baseline, trust=trust)
    return evaluate_frames(potential, frames, batch_size=batch_size, model=model, source=spec)


@plain_torch()
def evaluate_frames(
    potential: Potential, frames: Sequence[Frame], *, batch_size: int = 50, model: str = "", source: str = ""
) -> Evaluation:
    """Evaluate on frames that are at hand.

    Args:
        potential: ready for prediction.
        frames: with labels.
        batch_size: structures evaluated at once.
        model: name that the summary carries.
        source: where the frames are from, for messages.

    Raises:
        InputError: for species that the potential does not know.
    """
    started = time.monotonic()
    errors = ErrorStatistics(potential.species)
    pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    virial = any(frame.stress is not None for frame in frames)
    for start in range(0, len(frames), batch_size):
        batch = collate(_samples(frames[start : start + batch_size], start, potential, source))
        with torch.no_grad():
            predictions = potential(batch.graph, forces=True, virial=virial)
        errors.update(batch, predictions)
        for quantity, values in _pairs(batch, predictions).items():
            pairs.setdefault(quantity, []).append(values)
    summary = {**errors.summary(), "model": model, "seconds": round(time.monotonic() - started, 3)}
    return Evaluation(
        summary,
        {
            quantity: (
                torch.cat([reference for reference, _ in parts]).numpy(),
                torch.cat([predicted for _, predicted in parts]).numpy(),
            )
            for quantity, parts in pairs.items()
        },
    )


@plain_torch()
def uncertainty_summary(
    potential: Potential, posterior: Posterior, frames: Sequence[Frame]
) -> dict[str, Any]:
    """How uncertainties compare with errors on labelled frames.

    Returns:
        For ``energy`` (structures) and ``forces`` (atoms), where labelled: ``correlation`` (Spearman's, of error and
        uncertainty), ``coverage`` (share of the errors below the 90 % quantile), ``rms_error`` and
        ``rms_uncertainty`` (eV, eV/Å), and ``bins``: root mean squares of both in ten groups by uncertainty.
    """
    values: dict[str, list[NDArray[np.float64]]] = {"energy": [], "forces": []}
    for batch in batches_of(frames, potential.species, potential.cutoff, _WITH_UNCERTAINTY):
        with torch.no_grad():
            predicted = potential(batch.graph, forces=True, virial=False)
        energy = (batch.labels.energy - predicted.energy).abs().numpy()
        values["energy"].append(np.stack([energy, posterior.energy_uncertainty(batch.graph)]))
        forces = torch.linalg.vector_norm(batch.labels.forces - predicted.forces, dim=1).numpy()
        values["forces"].append(np.stack([forces, posterior.forces_uncertainty(batch.graph)]))
    summary = {}
    for name, parts in values.items():
        error, uncertainty = np.concatenate(parts, axis=1)
        quantile = getattr(posterior, name).quantile
        known = np.isfinite(error)
        if known.sum() > 1:
            summary[name] = covered(error[known], uncertainty[known], quantile)
    return summary


def check_labelled(potential: Potential, spec: str) -> None:
    """Whether :func:`evaluate` would work on a DATA specification, found out before hours of training.

    Raises:
        InputError: as :func:`evaluate`.
    """
    _samples(_labelled_frames(spec), 0, potential, spec)


def _labelled_frames(spec: str) -> list[Frame]:
    frames = load_frames(spec)
    if all(f.energy is None and f.forces is None and f.stress is None for f in frames):
        raise InputError("no structure has a label", file=spec, hint="name the keys with ?energy_key=...")
    return frames


def _samples(frames: Sequence[Frame], first: int, potential: Potential, spec: str) -> list[Batch]:
    samples = []
    for index, frame in enumerate(frames, first):
        try:
            samples.append(frame_to_sample(frame, potential.species, potential.cutoff))
        except InputError as error:
            raise error.at(file=spec, frame=index) from error
    return samples


def _pairs(batch: Batch, predictions: Predictions) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    graph, labels = batch.graph, batch.labels
    atoms = torch.bincount(graph.batch, minlength=graph.num_graphs)
    values = {
        "energy_per_atom": (labels.energy / atoms, predictions.energy / atoms),
        "forces": (labels.forces.flatten(), predictions.forces.flatten()),
    }
    if len(predictions.virial):
        values["stress"] = (
            labels.stress.flatten(),
            stress_from_virial(predictions.virial, graph.cell).flatten(),
        )
    result = {}
    for name, (reference, predicted) in values.items():
        known = ~torch.isnan(reference)
        if known.any():
            result[name] = (reference[known], predicted[known])
    return result


def some_frames(frames: Sequence[Frame]) -> list[Frame]:
    """At most 200 structures, spread over the set, with the energy or forces that errors are of."""
    places = np.unique(np.linspace(0, max(len(frames) - 1, 0), min(len(frames), _SOME)).astype(int)).tolist()
    chosen = [frames[place] for place in places]
    return [f for f in chosen if f.energy is not None or f.forces is not None or f.stress is not None]


def tests_of(config: Any) -> dict[str, str]:
    """What is evaluated at the end: the validation set, and the test data if there are any."""
    sets = {}
    if config.data.valid is not None:
        sets["validation"] = config.data.valid
    if config.data.test is not None:
        sets.update({part: part for part in config.data.test.split(",")})
    elif config.data.train == "builtin:ethanol-gfn2":
        sets.update(
            {name: f"builtin:ethanol-gfn2/{name}" for name in ("test_300K", "test_600K", "test_1200K")}
        )
    return sets


def evaluate_run(
    folder: Path,
    sets: Mapping[str, str],
    frames: Mapping[str, Sequence[Any]] | None = None,
    *,
    trusted: str | None = None,
) -> dict[str, Any]:
    """Errors of a run's best weights on several data sets; ``test.json`` and ``parity.npz`` in the run folder.

    Args:
        folder: of the run.
        sets: DATA specifications by name.
        frames: more of them, as frames that are at hand.
        trusted: the function that may be called when the run names it as its baseline.
    """
    potential, baseline = load_potential(folder, difference=True), baseline_of(folder)
    results = {name: evaluate_frames(potential, given) for name, given in (frames or {}).items() if given}
    results |= {
        name: evaluate(
            potential, spec, baseline=baseline, trust=baseline == trusted, known=name == "training"
        )
        for name, spec in sets.items()
    }
    if not results:
        return {}
    results = dict(sorted(results.items(), key=lambda item: item[0] == "training"))  # what counts comes first
    if "training" in results and remarks_on(results["training"].pairs):
        log.warning(
            "the predictions are far from the very labels that were trained on: this potential has hardly learnt yet"
        )
    else:
        for name, result in results.items():
            for sentence in remarks_on(result.pairs):
                log.warning("%s: %s", name, sentence)
    summaries = {name: result.summary for name, result in results.items()}
    save_pairs({name: result.pairs for name, result in results.items()}, folder / "parity.npz")
    write_json(folder / "test.json", summaries)
    return summaries
