"""Many organic molecules with energies and forces of GFN2-xTB: what ``builtin:organic-gfn2`` learnt.

They are of H, C, N, O, F, S and Cl.

Molecules are assembled at random from the rings, chains and groups below (:data:`CORES`, :data:`GROUPS`), with RDKit
(BSD licence), which is needed for this script alone. RDKit embeds each; dynamics with MMFF94 at 300 to 1000 K shakes
it, and a short dynamics with GFN2-xTB goes on from there, for the force field has bonds of its own. Labels are those
of the first and of some later frames::

    python scripts/builtin_data/organic.py FOLDER

writes ``train``, ``valid`` and ``test.extxyz``; no molecule is in two of them, and none of :data:`LEFT_OUT` is in any,
so that the sets of these molecules tell what the start is worth. The same seed gives the same molecules; frames are a
sample of the same distribution (dynamics amplifies the last bit of a force).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.io import write
from ethanol import label_gfn2

from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 2026
SPLITS = {"test": 120, "valid": 60, "train": 1700}
"""Molecules; of the last some of :data:`SMALL` come twice."""
LABELLED = (0, 6, 14)
"""Steps of the dynamics with GFN2, after which a frame is labelled."""
TIMESTEP = 1.0
"""fs."""
SHAKEN = (300, 700)
"""Steps with the force field, from and to."""
TEMPERATURES = (300.0, 1000.0)
"""K."""
FRICTION = 0.01
"""1/fs."""
LARGEST = 16
"""Heavy atoms."""
LARGEST_FORCE = 25.0
"""eV/Å; what has larger ones is left out."""

CORES = tuple(
    """
    C CC CCC C=C C#C C=CC=C CO CN COC CNC CN(C)C C=O CC=O C(=O)C C(=O)O C(=O)N C(=O)OC C(=O)CC=O OC=CC=O
    NC=CC=O C#N CC#N C=N CC=NO N=C=O C=C=O CN=C C1CC1 C1CCC1 C1CCCC1 C1CCCCC1 C1CO1 C1CN1 C1COC1 C1CCOC1
    C1CCNC1 C1CCNCC1 C1=CCCC1 C1COCCN1 C1CNCCN1 C1OCCO1 O=C1CCCC1 O=C1CCCN1 O=C1CCCO1 O=C1CCC(=O)N1 C1=CCC=CC1
    O=C1C=CC(=O)C=C1 c1ccccc1 c1ccncc1 c1ccncn1 c1cnccn1 c1cc[nH]c1 c1ccoc1 c1c[nH]cn1 c1cocn1 c1cn[nH]c1
    c1ccc2[nH]ccc2c1 c1ccc2ncccc2c1 c1ccc2occc2c1 c1ccc2ccccc2c1 O=c1cc[nH]cc1 O=c1ccocc1 O=c1cc[nH]c(=O)[nH]1
    c1ccccc1O c1ccccc1N c1ccccc1C=O c1ccccc1C(=O)O c1ccccc1OC NC(=O)N NCC(=O)O OCCO NN ON OO
    CS CSC CSSC C=S CC=S CS(C)=O CS(C)(=O)=O CS(=O)(=O)N NC(=S)N CC(=O)SC C1CCSC1 C1CSCCN1 c1ccsc1 c1cscn1
    c1ccc2sccc2c1 c1ccccc1S FCF ClCCl CC(F)(F)F C=CCl c1ccccc1F c1ccccc1Cl
    """.split()  # noqa: SIM905  (a list literal has a line for each)
)
"""What a molecule begins with."""
GROUPS = tuple(
    """
    C C C CC C(C)C C=C C#C O O OC OC N N NC N(C)C C=O C(C)=O C(=O)O C(=O)OC OC(C)=O C(N)=O NC(C)=O C#N
    [N+](=O)[O-] CO CN COC C=NO NO NC=O OC=O CC(C)=O CC(=O)O C=CC=O C1CC1 C1CCCC1 C1CCCCC1 C1CCNCC1 N1CCOCC1
    N1CCCC1 C1CCCO1 c1ccccc1 c1ccccc1 Cc1ccccc1 Oc1ccccc1 OCc1ccccc1 c1ccncc1 c1ccccn1 c1ccco1 c1ccc[nH]1
    F F F Cl Cl CF CCl C(F)(F)F OC(F)(F)F C(F)F S S SC SC CS CSC S(C)=O S(C)(=O)=O S(N)(=O)=O C(N)=S SC#N
    c1cccs1 c1ccc(F)cc1 c1ccc(Cl)cc1
    """.split()  # noqa: SIM905  (a list literal has a line for each)
)
"""What takes the place of a hydrogen; the first atom is bonded."""
SMALL = (
    "C",
    "N",
    "O",
    "CO",
    "CN",
    "C=O",
    "C#N",
    "CC",
    "C=C",
    "C#C",
    "NN",
    "OO",
    "NO",
    "N=O",
    "C=N",
    "O=C=O",
    "[H][H]",
    "S",
    "F",
    "Cl",
    "CF",
    "CCl",
    "CS",
    "C=S",
    "SS",
    "O=S=O",
    "O=C=S",
    "FC(F)(F)F",
    "ClC(Cl)Cl",
    "FC=O",
    "ClC#N",
)
"""The smallest, which are always in the training set."""
LEFT_OUT = {
    "acetylacetone": ("CC(=O)CC(C)=O", "CC(=O)C=C(C)O"),
    "aspirin": ("CC(=O)Oc1ccccc1C(=O)O",),
    "ethanol": ("CCO",),
    "3BPA": ("Nc1ncccc1OCc1ccccc1",),
}
"""By their graphs; the sets that the start is judged by."""


def smiles(generator: np.random.Generator) -> Iterator[str]:
    """Canonical SMILES of different molecules, without end; none is one of :data:`LEFT_OUT`."""
    from rdkit import Chem

    without = {canonical(text) for texts in LEFT_OUT.values() for text in texts}
    known = set(without)
    while True:
        molecule = Chem.MolFromSmiles(str(generator.choice(CORES)))
        for _ in range(int(generator.choice(5, p=[0.05, 0.3, 0.35, 0.2, 0.1]))):
            molecule = _substituted(molecule, str(generator.choice(GROUPS)), generator)
        text = Chem.MolToSmiles(molecule)
        if text in known or not 2 <= molecule.GetNumHeavyAtoms() <= LARGEST:
            continue
        known.add(text)
        yield text


def canonical(text: str) -> str:
    """One spelling for each graph."""
    from rdkit import Chem

    return str(Chem.MolToSmiles(Chem.MolFromSmiles(text)))


def _substituted(molecule: Any, group: str, generator: np.random.Generator) -> Any:
    """The molecule with a group in place of one hydrogen, or as it is where that makes no molecule."""
    from rdkit import Chem

    places = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs() > 0]
    if not places:
        return molecule
    other = Chem.MolFromSmiles(group)
    joined = Chem.RWMol(Chem.CombineMols(molecule, other))
    place, first = int(generator.choice(places)), molecule.GetNumAtoms()
    joined.AddBond(place, first, Chem.BondType.SINGLE)
    for index in (place, first):
        atom = joined.GetAtomWithIdx(index)
        if atom.GetNumExplicitHs():
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
    try:
        Chem.SanitizeMol(joined)
    except (Chem.AtomValenceException, Chem.KekulizeException):
        return molecule
    return joined.GetMol()


def frames(text: str, generator: np.random.Generator) -> list[Frame]:
    """Labelled structures of a molecule; none where it cannot be embedded or calculated."""
    from ase import Atoms, units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from rdkit import Chem
    from rdkit.Chem import AllChem
    from tblite.ase import TBLite

    molecule = Chem.AddHs(Chem.MolFromSmiles(text))
    if AllChem.EmbedMolecule(molecule, randomSeed=int(generator.integers(2**31 - 1))) != 0:
        return []
    properties = AllChem.MMFFGetMoleculeProperties(molecule)
    atoms = Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()])
    atoms.positions = molecule.GetConformer().GetPositions()
    temperature = float(generator.uniform(*TEMPERATURES))
    velocities = None
    if properties is not None:
        AllChem.MMFFOptimizeMolecule(molecule, maxIters=50)
        atoms.positions = molecule.GetConformer().GetPositions()
        field = AllChem.MMFFGetMoleculeForceField(molecule, properties)
        velocities = _shake(atoms, field, temperature, int(generator.integers(*SHAKEN)), generator)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=generator)
    if velocities is not None:
        atoms.set_velocities(velocities / units.fs)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    dynamics = Langevin(
        atoms,
        TIMESTEP * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,
        rng=generator,
    )
    found, done = [], 0
    for step in LABELLED:
        dynamics.run(step - done)
        done = step
        frame = label_gfn2(atoms, {"molecule": text, "temperature": round(temperature), "step": step})
        if frame.forces is not None and np.abs(frame.forces).max() < LARGEST_FORCE:
            found.append(frame)
    return found


def _shake(
    atoms: Any, field: Any, temperature: float, steps: int, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Langevin dynamics with RDKit's force field, positions changed in place; velocities in Å/fs."""
    masses = atoms.get_masses()[:, None]
    unit = 9.648533e-3  # eV/Å/u in Å/fs²
    kcal = 0.0433641  # eV
    thermal = np.sqrt(8.617333e-5 * temperature * unit / masses)
    positions, shape = atoms.positions.copy(), atoms.positions.shape
    velocities = thermal * generator.standard_normal(shape)

    def acceleration() -> np.ndarray[Any, Any]:
        place = positions.ravel().tolist()
        field.CalcEnergy(place)  # forgets the distances of the last place, which CalcGrad alone would take
        gradient = np.array(field.CalcGrad(place)).reshape(shape)
        return -gradient * kcal * unit / masses

    kept, noise = np.exp(-FRICTION * TIMESTEP), np.sqrt(1.0 - np.exp(-2 * FRICTION * TIMESTEP))
    pull = acceleration()
    for _ in range(steps):  # BAOAB
        velocities += 0.5 * TIMESTEP * pull
        positions += 0.5 * TIMESTEP * velocities
        velocities = kept * velocities + noise * thermal * generator.standard_normal(shape)
        positions += 0.5 * TIMESTEP * velocities
        pull = acceleration()
        velocities += 0.5 * TIMESTEP * pull
    atoms.positions = positions
    return velocities


def make(folder: Path, splits: dict[str, int], seed: int, minutes: float | None = None) -> None:
    """Write one file for each split; the last has fewer molecules where the time is over before."""
    end = time.monotonic() + 60 * minutes if minutes is not None else np.inf
    folder.mkdir(parents=True, exist_ok=True)
    molecules = smiles(np.random.default_rng([seed, 0]))
    small = [
        text for text in map(canonical, SMALL) if text not in {canonical(t) for t in LEFT_OUT["ethanol"]}
    ]
    for place, (name, count) in enumerate(splits.items()):
        started, done, lost = time.process_time(), [], 0
        texts = itertools.chain(small if name == "train" else (), molecules)
        number = 0
        for text in texts:
            if number == count or time.monotonic() > end:
                break
            if name != "train" and text in small:
                continue  # in the training set
            try:
                new = frames(text, np.random.default_rng([seed, 1 + place, number]))
            except Exception as error:  # noqa: BLE001  (tblite raises what it likes where charges do not converge)
                print(f"{text}: {str(error).splitlines()[0][:80]}", file=sys.stderr)
                new = []
            if not new:
                lost += 1
                continue
            number += 1
            done += new
            if number % 200 == 0:
                print(
                    f"{name}: {number} of {count} molecules, {time.process_time() - started:.0f} CPU s",
                    flush=True,
                )
        order = np.random.default_rng([seed, 99, place]).permutation(len(done))
        with replacing(folder / f"{name}.extxyz") as temporary:
            write(temporary, [frame_to_atoms(done[k]) for k in order], format="extxyz")
        print(f"{name}: {number} molecules, {len(done)} structures, {lost} molecules left out", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--molecules", type=int, help="of the training set; the others in proportion")
    parser.add_argument("--minutes", type=float, help="then no molecule is added any more")
    given = parser.parse_args()
    share = 1.0 if given.molecules is None else given.molecules / SPLITS["train"]
    make(
        given.folder,
        {name: max(1, round(count * share)) for name, count in SPLITS.items()},
        given.seed,
        given.minutes,
    )
