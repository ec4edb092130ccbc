"""Small potentials that come with the package, as the start of a training: ``builtin:NAME`` wherever a run is named.

Each is a checkpoint without the optimiser's state, in the package's own format, in ``weights/``;
``scripts/builtin_data/organic_start.py`` made them. They are meant to be trained on, not to be used as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pimlip_zoo.errors import InputError, did_you_mean
from pimlip_zoo.files import content_hash

if TYPE_CHECKING:
    from pimlip_zoo.datasets.frame import Frame

PREFIX = "builtin:"
_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Start:
    """One of them, in several architectures."""

    summary: str
    """What it learnt, in a line."""
    species: tuple[str, ...]
    """Elements that it knows."""
    checksums: Mapping[str, str]
    """SHA-256 of the file of each architecture; the first is the default one."""
    recipe: str
    """The training recipe of runs that start from it, unless they name theirs."""


STARTS: dict[str, Start] = {
    "organic-gfn2": Start(
        summary="molecules of H, C, N, O, F, S, Cl with up to 16 heavy atoms, energies and forces of GFN2-xTB",
        species=("H", "C", "N", "O", "F", "S", "Cl"),
        recipe="default",  # lower errors than with that of fine-tuning: docs/results/organic-start.md
        checksums={
            "nequip": "e047941a4b58e24d7b63ca98f139662c7aa6a8b3557f18f2e9d2c73fd77fe2b8",
            "mace": "adf24416d6e4686e14288d4a6c6d90b4439f6ead93a6bbbcbba23ea49de9d120",
            "allegro": "038432ae4f2acc6c921b4d01fb9ff614554b53a2f0824b094e378e93b8d8f38b",
        },
    ),
}
"""By name; docs/results/organic-start.md has what they are worth."""


def start_for(species: Collection[str]) -> str | None:
    """The first one that knows all of these elements, as a run is named; None: there is none.

    >>> start_for(["H", "Cl"])
    'builtin:organic-gfn2'
    """
    return next((PREFIX + name for name, start in STARTS.items() if set(species) <= set(start.species)), None)


def start_for_molecules(frames: Iterable[Frame], model: str | None = None) -> str | None:
    """A start for these structures, as ``--from`` takes it; None where there is none.

    Args:
        frames: crystals and what states a charge have none: the starts have seen neutral molecules.
        model: the architecture that is wanted, as the name then says where the start has it.
    """
    from ase.data import chemical_symbols

    numbers: set[int] = set()
    for frame in frames:
        if frame.pbc.any() or frame.info.get("charge"):
            return None
        numbers.update(frame.numbers.tolist())
    name = start_for({chemical_symbols[number] for number in numbers}) if numbers else None
    if name is None or model not in STARTS[name.removeprefix(PREFIX)].checksums:
        return name
    return f"{name}/{model}"


def is_shipped(run: object) -> bool:
    """Whether a run is named as one of these are, known or not."""
    return str(run).startswith(PREFIX)


def full_name(run: str, model: str | None = None) -> str:
    """The name with its architecture.

    >>> full_name("builtin:organic-gfn2")
    'builtin:organic-gfn2/nequip'

    Args:
        run: ``builtin:NAME`` or ``builtin:NAME/ARCHITECTURE``.
        model: the architecture that is wanted where the name has none; None: the first there is.

    Raises:
        InputError: for an unknown name, or an architecture that it does not have.
    """
    name, _, given = run.removeprefix(PREFIX).partition("/")
    if name not in STARTS:
        raise InputError(
            f"no potential that comes with the package is called {name!r}",
            key=run,
            hint=did_you_mean(name, STARTS),
        )
    known = STARTS[name].checksums
    architecture = given or model or next(iter(known))
    if architecture not in known:
        raise InputError(
            f"it has no {architecture!r}",
            key=run,
            hint=f"there is {', '.join(known)}; train another architecture from the start, with --weak gfn2, say",
        )
    return f"{PREFIX}{name}/{architecture}"


def recipe_of(run: str) -> str:
    """The training recipe of runs that start from it.

    Args:
        run: ``builtin:NAME`` or ``builtin:NAME/ARCHITECTURE``.
    """
    return STARTS[full_name(run).removeprefix(PREFIX).partition("/")[0]].recipe


def shipped_file(run: str) -> Path:
    """The checkpoint that is meant.

    Args:
        run: ``builtin:NAME`` or ``builtin:NAME/ARCHITECTURE``.

    Raises:
        InputError: for a name that is not known, or a file that is missing or not the one that was packed.
    """
    name, _, architecture = full_name(run).removeprefix(PREFIX).partition("/")
    file = _FOLDER / f"{name}-{architecture}.ckpt"
    if not file.is_file():
        raise InputError("is missing in this installation", file=file, hint="install pimlip-zoo again")
    if content_hash(file) != STARTS[name].checksums[architecture]:
        raise InputError(
            "is not the file that came with the package", file=file, hint="install pimlip-zoo again"
        )
    return file
