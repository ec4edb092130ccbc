"""Train on a file of your own: copper cells with energies, forces and stress, here from ASE's EMT.

python examples/2_own_data.py         (--steps 200 for a first look)
"""

import argparse

import ase.build
import ase.io
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import pimlip_zoo as pz

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--out", default="runs/example-2", help="a folder without a run")
options = parser.parse_args()
steps, out = options.steps, options.out

random = np.random.default_rng(0)
structures = []
for _ in range(40):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell @ (np.eye(3) + random.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.rattle(0.1, rng=random)
    atoms.calc = EMT()
    labels = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces", "stress")}
    atoms.calc = SinglePointCalculator(atoms, **labels)  # eV, eV/Å, eV/Å³: ASE's units and signs
    structures.append(atoms)
ase.io.write("copper.extxyz", structures)

# A part is held out for validation; batches, model size and cutoff follow the structures.
pz.train({"data.train": "copper.extxyz", "trainer.max_steps": steps}, out=out)

cell = ase.build.bulk("Cu", cubic=True)
cell.calc = pz.calculator(out)
BFGS(FrechetCellFilter(cell), logfile=None).run(fmax=0.01, steps=50)
print(f"lattice constant: {cell.cell.lengths()[0]:.3f} Å (EMT: 3.589)")
