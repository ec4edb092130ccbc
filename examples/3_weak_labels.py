"""Fifty labels, and what a cheap level of theory knows: pre-training on GFN1-xTB (pip install 'pimlip-zoo[xtb]').

python examples/3_weak_labels.py      (--steps 200 for a first look)
"""

import argparse

import pimlip_zoo as pz
from pimlip_zoo.evaluation import evaluate

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--pool", type=int, default=300, help="structures that GFN1 labels")
parser.add_argument("--out", default="runs/example-3", help="a folder without a run")
options = parser.parse_args()

plain = {"data.train": "builtin:ethanol-gfn2@:50", "trainer.max_steps": options.steps}
weak = {
    **plain,
    "weak.labels.method": "pretrain",
    "weak.labels.calculator": "gfn1",
    "weak.labels.steps": options.steps,
    "weak.labels.pool.structures": options.pool,
}
for name, settings in (("plain", plain), ("pretrained", weak)):
    potential = pz.train(settings, out=f"{options.out}-{name}")
    errors = evaluate(potential, "builtin:ethanol-gfn2/test_600K").summary
    print(f"{name}: forces at 600 K {1e3 * errors['forces']['rmse']:.0f} meV/Å (root mean square)")
