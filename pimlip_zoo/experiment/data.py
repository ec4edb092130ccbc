"""The structures of a run: which are trained on, which labels they have, what their atoms weigh in energy."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pimlip_zoo.config import DataSection, RunConfig
from pimlip_zoo.datasets.coverage import is_isolated_atom, isolated_atom_energies
from pimlip_zoo.datasets.electrons import electrons_of, stated
from pimlip_zoo.datasets.frame import LABELS, Frame
from pimlip_zoo.datasets.frames import Frames, as_frames
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.statistics import (
    EnergyReferences,
    fit_references,
    references_from_atoms,
    species_of,
)
from pimlip_zoo.datasets.store_frames import open_frames
from pimlip_zoo.datasets.summary import facts_of
from pimlip_zoo.datasets.unseen import LOOKED_AT
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.holdout import held_out

log = logging.getLogger("pimlip_zoo")


def load_split(config: RunConfig, structures: Sequence[Frame] | None = None) -> tuple[Frames, Frames]:
    """The training and the validation structures that a configuration names; those of a store stay there.

    Without ``data.valid`` it is drawn from the training structures: ``data.valid_fraction`` of them, at most
    ``data.max_valid``; see :func:`~pimlip_zoo.experiment.holdout.held_out`.

    Args:
        config: of the run.
        structures: those of ``data.train``, where they have been read already.
    """
    data = config.data
    train = counting(structures_of(data.train, data) if structures is None else structures, data.train)
    if data.valid is not None:
        return train, counting(structures_of(data.valid, data), data.valid)
    if re.fullmatch(r"builtin:[^/,@]+", data.train):
        return train, as_frames(load_frames(f"{data.train}/valid"))
    atoms = set(isolated_atoms(train))
    free = [i for i in range(len(train)) if i not in atoms] or list(range(len(train)))
    if len(free) < 2:
        raise InputError(
            "one structure cannot be split", file=data.train, key="data.valid", hint="give --valid DATA"
        )
    count = held_out(len(free), data)
    held = np.zeros(len(train), dtype=bool)
    held[np.random.default_rng(config.seed).permutation(free)[:count]] = True
    return train.subset(np.flatnonzero(~held)), train.subset(np.flatnonzero(held))


def structures_of(spec: str, data: DataSection) -> Frames:
    """The frames of a specification, left in their store where they are to be streamed."""
    stored = open_frames(spec) if data.stream else None
    return as_frames(load_frames(spec)) if stored is None else stored


def counting(frames: Sequence[Frame], spec: str = "") -> Frames:
    """The frames that have a weight, with those labels that have one.

    What does not count is not looked at: not for references, scale or species, not for choosing the best weights.
    Isolated atoms stay: their energies are references whether or not they are trained on.

    Args:
        frames: all of them.
        spec: where they come from, for messages.

    Raises:
        InputError: when none is left.
    """
    kept = as_frames(frames).counting(is_isolated_atom)
    if len(frames) and not len(kept):
        raise InputError("every structure has weight 0", file=spec or None, key="config_weight")
    if len(kept) < len(frames):
        log.info("%s: %d structures of weight 0 are left out", spec or "data", len(frames) - len(kept))
    return kept


def isolated_atoms(frames: Sequence[Frame]) -> list[int]:
    """The positions of isolated atoms."""
    frames = as_frames(frames)
    return [i for i in frames.single_atoms() if is_isolated_atom(frames[i])]


def without_isolated_atoms(frames: Frames, *, keep: bool = False) -> tuple[Frames, list[Frame]]:
    """The structures to train on, and the isolated atoms with an energy that stood among them.

    Args:
        frames: all of them.
        keep: leave those atoms that have a weight among the structures, because references come from elsewhere.
    """
    labelled = [i for i in isolated_atoms(frames) if frames[i].energy is not None]
    atoms = [frames[i] for i in labelled]
    if keep:
        labelled = [i for i in labelled if not frames[i].weight * frames[i].label_weights[0] > 0]
    if not labelled or len(labelled) == len(frames):
        return frames, atoms
    others = np.ones(len(frames), dtype=bool)
    others[labelled] = False
    return frames.subset(np.flatnonzero(others)), atoms


def other_structures(spec: str, data: DataSection, species: Sequence[str]) -> Frames:
    """Structures with labels of another level than the run's, without isolated atoms.

    Args:
        spec: DATA; a store stays where it is.
        data: of the run: whether stores are streamed.
        species: that the potential knows.

    Raises:
        InputError: when it cannot be read, or has another element.
    """
    frames, _ = without_isolated_atoms(counting(structures_of(spec, data), spec))
    strange = sorted({*species_of(frames)} - {*species})
    if strange:
        raise InputError(
            f"no structure with reference labels has {', '.join(strange)}",
            file=spec,
            key="species",
            hint="leave such structures out, or add reference labels of some",
        )
    return frames


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
    facts = facts_of(frames)
    present = [label for label in LABELS if facts.count(label)]
    if data.labels != "auto":
        missing = [label for label in data.labels if label not in present]
        if missing:
            raise InputError(
                f"no training structure has {' or '.join(missing)}",
                file=data.train,
                key="data.labels",
                hint=f"the data have {', '.join(present) or 'no labels'}; name the keys with ?energy_key=...",
            )
        return tuple(data.labels)
    if "energy" not in present and "forces" not in present:
        raise InputError(
            "no training structure has an energy or forces",
            file=data.train,
            key="energy",
            hint="name the keys with ?energy_key=...&forces_key=...",
        )
    return tuple(present)


def check_validation(data: DataSection, labels: Sequence[str], valid: Frames, *, begun: bool) -> None:
    """Whether there is something to validate with.

    Args:
        data: of the run.
        labels: that are trained on.
        valid: validation structures, with these labels alone.
        begun: the run goes on with what it has; it is said, not refused.

    Raises:
        InputError: when no validation structure has any of the labels.
    """
    facts = facts_of(valid)
    if not len(valid) or any(facts.count(label) for label in labels):
        return
    said = f"no validation structure has {' or '.join(labels)}"
    if begun:
        log.warning("%s: weights cannot be chosen by it, and errors are not known", said)
        return
    if data.valid is not None:
        raise InputError(said, file=data.valid, key="data.valid", hint="name others, or their keys")
    raise InputError(
        f"{said}: they were drawn from structures of which few have labels",
        file=data.train,
        key="data.valid",
        hint="leave out what has no label, or give --valid DATA",
    )


def describe_labels(name: str, frames: Frames) -> str:
    """One line: how many structures there are, and how many have which label."""
    facts = facts_of(frames)
    counts = {label: facts.count(label) for label in LABELS}
    found = ", ".join(f"{label} {count}/{len(frames)}" for label, count in counts.items() if count)
    text = f"{name}: {len(frames)} structures, {facts.natoms.sum()} atoms; labels: {found or 'none'}"
    return text if frames.source is None else f"{text}; read from {frames.source} as needed"


def several_electrons(frames: Sequence[Frame], *, embedded: bool, valid: Sequence[Frame] = ()) -> str | None:
    """One line where the structures have more than one charge or spin, or another than none; None where they have not.

    Args:
        frames: that are trained on; of a large store some, evenly spread.
        embedded: the model sees both.
        valid: that are validated on, looked at likewise.
    """
    kinds, some = _kinds_of(as_frames(frames))
    beside, some_beside = _kinds_of(as_frames(valid))
    together = kinds.keys() | beside.keys()
    if embedded and len(kinds) <= 1:
        return (
            "all structures are of one charge and kind of multiplicity: model.embed_charge can learn little"
        )
    if not embedded and together <= {(0, False)}:
        return None
    if len(together) == 1:
        return f"all structures are of {_said(kinds)}; the model does not see it, and predicts the same of any other"
    of = " of those that were looked at" if some or some_beside else ""
    text = f"structures of several charges or spins{of}: {_said(kinds)}"
    if together > kinds.keys():
        text += f"; of validation {_said(beside)}"
    if embedded:
        return f"{text}; the model sees both (model.embed_charge)"
    return (
        f"{text}; the model does not see them, and takes one geometry to have one energy: "
        "--set model.embed_charge=true shows them, or train on one kind"
    )


def _kinds_of(frames: Frames) -> tuple[Counter[tuple[int, bool]], bool]:
    """How many are of which charge, and of more than the lowest multiplicity; whether only some were looked at."""
    if frames.uncharged():
        return Counter({(0, False): len(frames)}) if len(frames) else Counter(), False
    positions, step = frames.sample(LOOKED_AT)
    looked = (frames[position] for position in positions)
    kinds = (
        (electrons_of(frame.numbers, frame.info).charge, "multiplicity" in stated(frame)) for frame in looked
    )
    return Counter(kinds), step > 1


def _said(kinds: Counter[tuple[int, bool]]) -> str:
    charges: Counter[int] = Counter()
    for (charge, _), count in kinds.items():
        charges[charge] += count
    names = ", ".join(f"charge {charge:+d}" if charge else "charge 0" for charge in sorted(charges))
    numbers = ", ".join(str(charges[charge]) for charge in sorted(charges))
    excited = sum(count for (_, high), count in kinds.items() if high)
    return f"{names} ({numbers}); {excited} not of lowest multiplicity"


def energy_references_of(
    config: RunConfig, frames: Sequence[Frame], species: Sequence[str], atoms: dict[str, float]
) -> EnergyReferences:
    """Energies of the atoms apart, from where ``data.energy_references`` says."""
    given = config.data.energy_references
    if isinstance(given, dict):
        return references_from_atoms(given, species, "given")
    if given == "none" or not facts_of(frames).count("energy"):
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
