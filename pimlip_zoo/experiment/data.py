"""The structures of a run: which are trained on, which labels they have, what their atoms weigh in energy."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pimlip_zoo.config import DataSection, RunConfig
from pimlip_zoo.datasets.coverage import is_isolated_atom, isolated_atom_energies
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.statistics import (
    EnergyReferences,
    fit_references,
    references_from_atoms,
)
from pimlip_zoo.errors import InputError

__all__ = [
    "chosen_labels",
    "describe_labels",
    "energy_references_of",
    "keep_labels",
    "load_split",
    "reference_frames",
]

log = logging.getLogger("pimlip_zoo")

LABELS = ("energy", "forces", "stress")


def load_split(config: RunConfig) -> tuple[list[Frame], list[Frame]]:
    """The training and the validation structures that a configuration names."""
    data = config.data
    train = load_frames(data.train)
    if data.valid is not None:
        return train, load_frames(data.valid)
    if re.fullmatch(r"builtin:[^/,@]+", data.train):
        return train, load_frames(f"{data.train}/valid")
    structures = [i for i, frame in enumerate(train) if not is_isolated_atom(frame)] or list(
        range(len(train))
    )
    if len(structures) < 2:
        raise InputError(
            "one structure cannot be split", file=data.train, key="data.valid", mend="give --valid DATA"
        )
    count = min(max(1, round(data.valid_fraction * len(structures))), len(structures) - 1)
    chosen = set(np.random.default_rng(config.seed).permutation(structures)[:count].tolist())
    return (
        [frame for i, frame in enumerate(train) if i not in chosen],
        [frame for i, frame in enumerate(train) if i in chosen],
    )


def reference_frames(data: DataSection) -> list[Frame]:
    """The isolated atoms of the file that ``data.energy_references`` names, if it names one."""
    given = data.energy_references
    if isinstance(given, str) and given not in ("auto", "isolated", "least_squares", "none"):
        frames = load_frames(given)
        if not isolated_atom_energies(frames):
            raise InputError(
                "no structure of one atom with an energy and no periodic direction",
                file=given,
                key="data.energy_references",
            )
        return frames
    return []


def chosen_labels(data: DataSection, frames: Sequence[Frame]) -> tuple[str, ...]:
    """Which labels are trained on.

    Raises:
        InputError: when a label that was asked for is nowhere, or there is none at all.
    """
    present = [label for label in LABELS if any(getattr(frame, label) is not None for frame in frames)]
    if data.labels != "auto":
        missing = [label for label in data.labels if label not in present]
        if missing:
            raise InputError(
                f"no training structure has {' or '.join(missing)}",
                file=data.train,
                key="data.labels",
                mend=f"the data have {', '.join(present) or 'no labels'}; name the keys with ?energy_key=...",
            )
        return tuple(data.labels)
    if "energy" not in present and "forces" not in present:
        raise InputError(
            "no training structure has an energy or forces",
            file=data.train,
            key="energy",
            mend="name the keys with ?energy_key=...&forces_key=...",
        )
    return tuple(present)


def keep_labels(frame: Frame, labels: Sequence[str]) -> Frame:
    """The frame without its other labels."""
    return replace(
        frame,
        energy=frame.energy if "energy" in labels else None,
        forces=frame.forces if "forces" in labels else None,
        stress=frame.stress if "stress" in labels else None,
    )


def describe_labels(name: str, frames: Sequence[Frame]) -> str:
    """One line: how many structures there are, and how many have which label."""
    counts = [sum(getattr(frame, label) is not None for frame in frames) for label in LABELS]
    atoms = sum(len(frame.numbers) for frame in frames)
    found = ", ".join(
        f"{label} {count}/{len(frames)}" for label, count in zip(LABELS, counts, strict=True) if count
    )
    return f"{name}: {len(frames)} structures, {atoms} atoms; labels: {found or 'none'}"


def energy_references_of(
    config: RunConfig, frames: Sequence[Frame], species: Sequence[str], atoms: dict[str, float]
) -> EnergyReferences:
    """Energies of the atoms apart, from where ``data.energy_references`` says."""
    given = config.data.energy_references
    if isinstance(given, dict):
        return references_from_atoms(given, species, "given")
    if given == "none" or not any(frame.energy is not None for frame in frames):
        return EnergyReferences(np.zeros(len(species)), "none", len(species))
    if given == "auto" and config.data.train.startswith("builtin:"):
        from pimlip_zoo.datasets.builtin import builtin_atom_energies

        name = config.data.train.removeprefix("builtin:").split("/")[0].split("@")[0]
        atoms = {**builtin_atom_energies(name), **atoms}
    if given == "least_squares" or (given == "auto" and not all(symbol in atoms for symbol in species)):
        references = fit_references(frames, species)
        if references.rank < len(species):
            log.warning(
                "the compositions determine %d of %d energy references; the shortest solution is taken, and other "
                "compositions will be off (give isolated atoms with data.energy_references)",
                references.rank,
                len(species),
            )
        return references
    return references_from_atoms(atoms, species, "isolated atoms")
