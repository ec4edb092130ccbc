"""Train NequIP on built-in data, look at its errors, and use it in ASE.

python examples/1_train.py            (two minutes; --steps 200 for a first look)
"""

import argparse

import ase.build
from ase import units
from ase.md.langevin import Langevin

import pimlip_zoo as pz
from pimlip_zoo.evaluation import evaluate

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6000)
parser.add_argument("--out", default="runs/example-1", help="a folder without a run")
options = parser.parse_args()
steps, out = options.steps, options.out

potential = pz.train(
    {"model.name": "nequip", "data.train": "builtin:ethanol-gfn2", "trainer.max_steps": steps},
    out=out,
)
errors = evaluate(potential, "builtin:ethanol-gfn2/test_300K").summary
print(f"forces at 300 K: {1e3 * errors['forces']['mae']:.1f} meV/Å (mean absolute error)")

atoms = ase.build.molecule("CH3CH2OH")
atoms.calc = pz.calculator(out)  # energy in eV, forces in eV/Å
print(f"energy: {atoms.get_potential_energy():.4f} eV")
Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False).run(20)
print(f"after 10 fs: {atoms.get_potential_energy():.4f} eV")
