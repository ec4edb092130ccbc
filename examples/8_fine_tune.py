"""Fine-tuning: what one level of theory taught is the start for a few labels of another.

    python examples/8_fine_tune.py        (--steps 200 for a first look)

A foundation model is a run like any other after `pimlip-zoo import sevennet 7net-0 -o runs/7net-0`.
"""

import argparse

import pimlip_zoo as pz
from pimlip_zoo.evaluation import evaluate

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--out", default="runs/example-8", help="a folder without a run")
options = parser.parse_args()
steps, out = options.steps, options.out

test = "builtin:ethanol-gfn2/test_600K"
pz.train({"data.train": "builtin:ethanol-gfn2@:500", "trainer.max_steps": steps}, out=f"{out}-first")
tuned = pz.train(
    {
        "finetune.run": f"{out}-first",  # its architecture and weights
        "data.train": f"{test}@:50",
        "trainer.max_steps": max(steps // 4, 1),
    },
    out=f"{out}-tuned",
)
before = evaluate(pz.load(f"{out}-first"), f"{test}@50:").summary
after = evaluate(tuned, f"{test}@50:").summary
print(
    f"forces at 600 K: {1e3 * before['forces']['rmse']:.0f} meV/Å, then {1e3 * after['forces']['rmse']:.0f}"
)
