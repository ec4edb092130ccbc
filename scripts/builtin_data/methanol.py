"""Methanol in the gas phase at a composite limit of CCSD(T), energies only, and forces of a few structures to judge by.

Structures come from Langevin dynamics with GFN2-xTB at 300 to 1000 K. Labels come from ``pimlip-zoo label``::

    python scripts/builtin_data/methanol.py structures FOLDER
    python scripts/builtin_data/methanol.py label FOLDER --minutes 12      # again and again, until all is there
    python scripts/builtin_data/methanol.py pack FOLDER --out pimlip_zoo/datasets/data       # what is there so far

The second is resumed wherever it was stopped. The level is ``E_HF(TQ) + E_MP2corr(TQ) + [E_CCSD(T) - E_MP2](cc-pVDZ)``;
see :mod:`pimlip_zoo.labelling.basis_limit` for the extrapolation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase.build import molecule
from ase.data import chemical_symbols
from ase.io import write
from ethanol import dynamics, gfn2_atom_energies, label_gfn2
from packing import write_packed

from pimlip_zoo.datasets.builtin_format import PackedSet
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.files import replacing
from pimlip_zoo.labelling.journal import journal_path
from pimlip_zoo.labelling.structures import load_structures
from pimlip_zoo.locks import try_lock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from numpy.typing import NDArray

SEED = 2026
TEMPERATURES = (300.0, 500.0, 750.0, 1000.0)
SPLITS = {"train": 500, "valid": 100, "test": 300}
WITH_FORCES = 50
"""The first of the test structures get forces, too."""
FORCES = "test_forces"
CHUNK = 5
"""Structures with forces are labelled in parts of so many, each a file: several processes can work at them."""
LEVEL = "pyscf:CCSD(T)/cc-pvtz:cc-pvqz:cc-pvdz"
STEP = 0.0025
"""Å, of the central differences."""
EQUILIBRATION = 1000.0
"""fs that are thrown away at the start of each trajectory."""
KEPT = ("config_type", "trajectory", "time_fs")
"""What is kept of a structure beside its labels."""
MULTIPLICITY = {"H": 2, "C": 3, "O": 3}
"""Ground states 2S, 3P, 3P."""


def structures(folder: Path) -> None:
    """Write the structures of all splits, a trajectory for each temperature and split."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, count) in enumerate(SPLITS.items()):
        target = folder / f"{name}.extxyz"
        if target.exists():
            continue
        frames: list[Frame] = []
        for number, temperature in enumerate(TEMPERATURES):
            generator = np.random.default_rng([SEED, place, number])
            share = count // len(TEMPERATURES)
            for elapsed, atoms in dynamics(_start(generator), temperature, share, EQUILIBRATION, generator):
                frames.append(
                    label_gfn2(
                        atoms,
                        {
                            "config_type": f"md_{temperature:.0f}K",
                            "trajectory": f"{name}_{number}",
                            "time_fs": elapsed,
                        },
                    )
                )
        order = np.random.default_rng([SEED, place]).permutation(len(frames))
        _write(target, [frame_to_atoms(frames[k]) for k in order])  # the first n are a fair sample
        if name == "test":
            _write(folder / "test_forces.extxyz", [frame_to_atoms(frames[k]) for k in order[:WITH_FORCES]])
        print(f"{count} structures, {name}", flush=True)
    atoms = []
    for symbol, multiplicity in MULTIPLICITY.items():
        atom = molecule(symbol)
        atom.info["multiplicity"] = multiplicity
        atoms.append(atom)
    _write(folder / "atoms.extxyz", atoms)


def _start(generator: np.random.Generator) -> Atoms:
    """Methanol with the hydroxyl group turned by a random angle."""
    atoms = molecule("CH3OH")
    carbon, oxygen = (next(i for i, s in enumerate(atoms.symbols) if s == symbol) for symbol in "CO")
    hydrogens = [i for i, s in enumerate(atoms.symbols) if s == "H"]
    hydroxyl = min(hydrogens, key=lambda i: atoms.get_distance(i, oxygen))
    other = next(i for i in hydrogens if i != hydroxyl)
    atoms.rotate_dihedral(hydroxyl, oxygen, carbon, other, generator.uniform(0, 360), indices=[hydroxyl])
    return atoms


def _write(path: Path, frames: list[Atoms]) -> None:
    with replacing(path) as temporary:
        write(temporary, frames, format="extxyz")


class Part(NamedTuple):
    """What is labelled by one command."""

    split: str
    start: int
    stop: int

    @property
    def labels(self) -> str:
        """Name of the file of labels, without its ending."""
        return f"{self.split}-{self.start}" if self.split == FORCES else self.split

    @property
    def done(self) -> str:
        """Name of the file that says that the labels are there."""
        return f"{self.split}-{self.start}-{self.stop}.done"


def parts() -> list[Part]:
    """All of them, in the order in which they are of use: the first ones make a small set."""
    forces = [Part(FORCES, start, start + CHUNK) for start in range(0, WITH_FORCES, CHUNK)]
    first = [
        Part("atoms", 0, len(MULTIPLICITY)),
        Part("train", 0, 100),
        Part("valid", 0, 30),
        Part("test", WITH_FORCES, 80),
    ]
    later = [Part("train", 0, 300), *(Part(name, _first(name), count) for name, count in SPLITS.items())]
    return [*first, *forces[:2], later[0], *forces[2:4], *later[1:], *forces[4:]]


def _first(split: str) -> int:
    """Test structures with forces get their energies there."""
    return WITH_FORCES if split == "test" else 0


def label(folder: Path, minutes: float) -> bool:
    """Compute what is missing, as long as there is time.

    Several processes may do so at once: what one has begun is passed over by the others.

    Returns:
        Whether all is there.
    """
    end = time.monotonic() + 60 * minutes
    all_there = True
    for part in parts():
        if (folder / part.done).exists():
            continue
        all_there = False
        lock = try_lock(folder / f"{part.labels}.busy")
        if lock is None:
            print(f"{part.labels}: another process is at it", flush=True)
            continue
        try:
            if not _label_part(folder, part, end - time.monotonic()):
                return False
        finally:
            lock.release()
    return all_there or all((folder / part.done).exists() for part in parts())


def _label_part(folder: Path, part: Part, seconds: float) -> bool:
    """Whether it is complete in that time."""
    level = f"{LEVEL}?forces=numerical&step={STEP}" if part.split == FORCES else LEVEL
    command = [
        sys.executable,
        "-m",
        "pimlip_zoo",
        "label",
        f"{folder / part.split}.extxyz@{part.start}:{part.stop}",
    ]
    command += [
        "--calculator",
        level,
        "-o",
        f"{folder / part.labels}.lmdb",
        "--overwrite",
        "--time-limit",
        "2h",
    ]
    try:
        subprocess.run(command, check=True, timeout=max(seconds, 0.0))  # noqa: S603
    except subprocess.TimeoutExpired:
        return False
    (folder / part.done).touch()
    return True


def pack(folder: Path, out: Path) -> None:
    """Put the labels that are there into ``methanol-cbs.npz``, and all structures with GFN2 into ``methanol-low.npz``.

    What was computed counts, also of a part that was stopped; the splits say how many structures have a label.

    Raises:
        InputError: when the isolated atoms, or all labels of a split, are missing.
    """
    energies = {
        chemical_symbols[int(frame.numbers[0])]: float(frame.energy or 0.0)
        for frame in _labelled(folder, "atoms", [folder / "atoms.lmdb"])
    }
    splits = {name: _labelled(folder, name, [folder / f"{name}.lmdb"]) for name in SPLITS}
    splits[FORCES] = _labelled(folder, FORCES, sorted(folder.glob(f"{FORCES}-*.lmdb.journal")))
    judges = {frame.positions.tobytes() for frame in splits[FORCES]}
    splits["test"] = [frame for frame in splits["test"] if frame.positions.tobytes() not in judges]
    for name, found in {**splits, "isolated atoms": energies}.items():
        if not found:
            raise InputError(f"no labels of {name}", file=folder, hint="label the structures first")
    noise = [float(np.abs(_forces(frame).sum(axis=0)).max()) for frame in splits[FORCES]]
    common = _provenance()
    write_packed(
        out / "methanol-cbs.npz",
        PackedSet(
            splits,
            energies,
            {
                "name": "methanol-cbs",
                **common,
                "level_of_theory": f"CCSD(T)/CBS, {LEVEL.removeprefix('pyscf:')}: "
                "E_HF(TQ limit) + E_MP2corr(TQ limit) + [E_CCSD(T) - E_MP2](cc-pVDZ)",
                "extrapolation": "E_HF(X) = E + A exp(-5.46 sqrt(X)), E_corr(X) = E + A X^-3.05, X = 3, 4 "
                "(J. Chem. Theory Comput. 7, 33 (2011))",
                "frozen_core": "1s of C and O",
                "density_fitting": "of Hartree-Fock, MP2 and CCSD(T), PySCF's auxiliary basis for the exchange",
                "forces": f"of {FORCES} alone: central differences of the same energy, step {STEP} Å",
                "largest_net_force": f"{max(noise):.1e} eV/Å, of {FORCES}: what the differences are uncertain by",
                "convergence": "SCF 1e-10 Hartree, CCSD 1e-8 Hartree",
                "atom_energies": "unrestricted, ground states H 2S, C 3P, O 3P",
                "made_with": {
                    "pyscf": _calculator(folder / "atoms.lmdb.journal")["version"].removeprefix("pyscf "),
                    **{package: _version(package) for package in ("tblite", "ase", "numpy")},
                },
                "splits": {name: {"frames": len(frames)} for name, frames in splits.items()},
                "planned": {**SPLITS, FORCES: WITH_FORCES},
            },
        ),
    )
    low = {name: [_kept(frame) for frame in load_frames(f"{folder / name}.extxyz")] for name in SPLITS}
    write_packed(
        out / "methanol-low.npz",
        PackedSet(
            low,
            gfn2_atom_energies({symbol: number - 1 for symbol, number in MULTIPLICITY.items()}),
            {
                "name": "methanol-low",
                **common,
                "level_of_theory": "GFN2-xTB, electronic temperature 300 K (J. Chem. Theory Comput. 15, 1652 (2019))",
                "atom_energies": "spin-polarised GFN2-xTB, ground states H 2S, C 3P, O 3P",
                "made_with": {package: _version(package) for package in ("tblite", "ase", "numpy")},
                "splits": {name: {"frames": len(frames)} for name, frames in low.items()},
            },
        ),
    )


def _labelled(folder: Path, split: str, files: Sequence[Path]) -> list[Frame]:
    """The structures of a split that have a label, in the order of the split."""
    found: dict[str, Any] = {}
    for file in files:
        journal = file if file.suffix == ".journal" else journal_path(file)
        if journal.exists():
            level = LEVEL if split != FORCES else f"{LEVEL}?forces=numerical&step={STEP}"
            found |= _read_journal(journal, level)
    labelled = []
    for structure in load_structures(f"{folder / split}.extxyz"):
        result = found.get(structure.key())
        if result is not None:
            forces = result.get("forces")
            frame = replace(
                structure.frame,
                energy=float(result["energy"]),
                forces=None if forces is None else np.array(forces, dtype=np.float64),
            )
            labelled.append(_kept(frame) if split in (*SPLITS, FORCES) else frame)
    return labelled


def _read_journal(path: Path, calculator: str) -> dict[str, Any]:
    """Results by key; a line that is being written just now is passed over."""
    lines = path.read_text().splitlines(keepends=True)[1:]
    name = _calculator(path)["name"]
    if name != calculator:
        raise InputError(f"its labels are of {name}, not of {calculator}", file=path)
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return {entry["key"]: entry["result"] for entry in entries if "result" in entry}


def _calculator(journal: Path) -> dict[str, str]:
    """Name, version and level of what computed it."""
    return dict(json.loads(journal.read_text().partition("\n")[0])["calculator"])


def _kept(frame: Frame) -> Frame:
    return replace(frame, stress=None, info={key: frame.info[key] for key in KEPT})


def _forces(frame: Frame) -> NDArray[np.float64]:
    assert frame.forces is not None
    return frame.forces


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _provenance() -> dict[str, Any]:
    return {
        "description": "methanol in the gas phase, Langevin dynamics with GFN2-xTB, the same structures as in "
        "methanol-cbs and methanol-low",
        "made_by": "scripts/builtin_data/methanol.py",
        "seed": SEED,
        "units": {"length": "Å", "energy": "eV", "forces": "eV/Å", "time_fs": "fs"},
        "licence": "MIT, as the package",
        "temperatures_K": TEMPERATURES,
    }


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("structures", "label", "pack"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(), help="of pack: folder of the two files")
    parser.add_argument("--minutes", type=float, default=1e6)
    given = parser.parse_args()
    try:
        if given.what == "structures":
            structures(given.folder)
        elif given.what == "pack":
            pack(given.folder, given.out)
        else:
            print("all is there" if label(given.folder, given.minutes) else "out of time: run it again")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
