"""Structures of many different molecules, one of each, for `organic.py`; none is known to `builtin:organic-gfn2`.

    python benchmarks/weak/heterogeneous_molecules.py FOLDER              (needs rdkit; two minutes)
    pimlip-zoo label FOLDER/molecules.extxyz --calculator "pyscf:B3LYP/6-31g*?grid=1" \\
        -o FOLDER/labelled.lmdb                                       (an hour of one core)

Molecules of H, C, N and O with four to eight heavy atoms, assembled as those that the start learnt
(`scripts/builtin_data/organic.py`), from the same sequence, behind all that it learnt, so that none is among them. Each
is shaken by MMFF94 and 14 fs of GFN2-xTB at 300 to 1000 K.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from ase.io import write

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "builtin_data"))

from organic import SEED, frames, smiles

from pimlip_zoo.datasets.frame import frame_to_atoms
from pimlip_zoo.files import replacing

BEHIND = 4000
"""Molecules of the sequence, among which are the 1,871 that the start learnt, was validated or tested on."""
HEAVY = (4, 8)
ELEMENTS = {"H", "C", "N", "O"}
MOLECULES = 320


def suitable():
    """SMILES of the molecules, in order, without end."""
    from rdkit import Chem

    for text in itertools.islice(smiles(np.random.default_rng([SEED, 0])), BEHIND, None):
        molecule = Chem.MolFromSmiles(text)
        symbols = {atom.GetSymbol() for atom in molecule.GetAtoms()}
        if symbols <= ELEMENTS and HEAVY[0] <= molecule.GetNumHeavyAtoms() <= HEAVY[1]:
            yield text


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--molecules", type=int, default=MOLECULES)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for text in suitable():
        if len(found) == args.molecules:
            break
        try:
            shaken = frames(text, np.random.default_rng([SEED, 7, len(found)]))
        except Exception as error:  # noqa: BLE001  (tblite raises what it likes where charges do not converge)
            print(f"{text}: {str(error).splitlines()[0][:80]}", file=sys.stderr)
            continue
        if shaken:
            atoms = frame_to_atoms(shaken[-1])
            atoms.calc = None
            atoms.info = {"molecule": text}
            found.append(atoms)
    with replacing(args.folder / "molecules.extxyz") as temporary:
        write(temporary, found, format="extxyz")
    print(f"{len(found)} molecules of {min(map(len, found))} to {max(map(len, found))} atoms")


if __name__ == "__main__":
    main()
