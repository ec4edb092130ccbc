"""From a pool to the structures that are to be labelled: screened, chosen, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.errors import InputError
from pimlip_zoo.labelling.acquisition import ACQUISITIONS, Candidates, Choice, check_used
from pimlip_zoo.labelling.screening import LeftOut, screen
from pimlip_zoo.labelling.uncertainty import Posterior
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
from pimlip_zoo.weak_labels.ensemble import predict_labels
from pimlip_zoo.weak_labels.pool import cached_labels


@dataclass(frozen=True)
class Selection:
    """What was chosen."""

    frames: tuple[Frame, ...]
    """In the order of choice, without labels; ``info`` has ``selected_gain`` and ``pool_index``."""
    choices: tuple[Choice, ...]
    """The same, by their numbers in the pool."""
    left_out: tuple[LeftOut, ...]
    acquisition: str
    unit: str
    """Of the gains."""
    usable: int


def select(
    pool: Sequence[Frame],
    count: int,
    *,
    acquisition: str,
    known: Sequence[Frame] = (),
    potential: Potential | None = None,
    posterior: Posterior | None = None,
    eyes: Potential | None = None,
    cheap: str | None = None,
    seed: int = 0,
    max_force: float = 50.0,
    source: str | None = None,
) -> Selection:
    """Choose structures to label.

    Args:
        pool: to choose from; labels are not looked at, but for absurd forces.
        count: how many.
        acquisition: a name in :data:`~pimlip_zoo.labelling.acquisition.ACQUISITIONS`.
        known: structures that are labelled.
        potential: trained on them.
        posterior: of the potential.
        eyes: another potential, whose features tell structures apart.
        cheap: calculator of the cheap level, for ``difference``.
        seed: of random choices.
        max_force: eV/Å; where an atom feels more, by the potential or the pool's own forces, a structure is left out.
        source: of the pool, for messages.

    Raises:
        InputError: for an unknown acquisition, one that needs what is not given, a pool without a usable structure, or
            one that is smaller than what is wanted.
    """
    way = ACQUISITIONS.get(acquisition, key="--acquisition")
    if way.needs_run and potential is None:
        raise InputError(
            f"{acquisition} needs a trained potential", key="--acquisition", hint="give --run RUN"
        )
    if count < 1:
        raise InputError(f"{count} structures", key="-n", hint="at least 1")
    if seed < 0:
        raise InputError(f"{seed} is not possible", key="seed", hint="at least 0")
    if not max_force > 0:  # NaN would leave out nothing
        raise InputError(f"{max_force:g} eV/Å is not possible", key="--max-force", hint="more than 0")
    check_used(acquisition, {"--features": eyes, "--cheap": cheap})
    if cheap is not None and potential is None:
        raise InputError("is compared with a trained potential", key="--cheap", hint="give --run RUN")
    forces = None if potential is None else predicted_forces(potential, pool)
    usable, left = screen(pool, known, forces, max_force=max_force)
    if not usable:
        reasons = f"; the first: {left[0].reason}" if left else ""
        raise InputError(f"no structure of the pool can be used{reasons}", file=source)
    if count > len(usable):
        raise InputError(
            f"{count} are wanted, {len(usable)} of {len(pool)} structures can be used",
            file=source,
            key="-n",
            hint="ask for fewer, or sample a larger pool",
        )
    frames = [pool[index] for index in usable]
    difference = None
    if cheap is not None and forces is not None:
        difference = _differences(frames, [forces[index] for index in usable], cheap)
    candidates = Candidates(frames, known, potential, posterior, eyes, difference)
    made = way.choose(candidates, count, np.random.default_rng(seed))
    choices = [Choice(usable[choice.index], choice.gain) for choice in made]
    return Selection(
        tuple(_bare(pool[choice.index], choice, rank) for rank, choice in enumerate(choices)),
        tuple(choices),
        tuple(left),
        acquisition,
        candidates.unit,
        len(usable),
    )


def predicted_forces(potential: Potential, frames: Sequence[Frame]) -> list[NDArray[np.float64]]:
    """(N, 3) eV/Å of each structure."""
    return [np.asarray(frame.forces) for frame in predict_labels(potential, frames, 16)]


def _differences(
    frames: Sequence[Frame], forces: Sequence[NDArray[np.float64]], cheap: str
) -> NDArray[np.float64]:
    labels = cached_labels(frames, find_cheap_calculator(cheap, trust=True))
    return np.array(
        [
            float(np.sqrt(np.mean((mine - other.forces) ** 2))) if other.forces is not None else 0.0
            for mine, other in zip(forces, labels, strict=True)
        ]
    )


def _bare(frame: Frame, choice: Choice, rank: int) -> Frame:
    info = {**frame.info, "pool_index": choice.index, "selected_rank": rank}
    if np.isfinite(choice.gain):
        info["selected_gain"] = round(float(choice.gain), 6)
    return replace(frame, energy=None, forces=None, stress=None, info=info)
