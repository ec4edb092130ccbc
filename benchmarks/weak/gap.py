"""How far a distilled student is from its teacher, and both from the reference, on tests and on its pool.

    python benchmarks/weak/gap.py RUN --root DATA --set acac --pool POOL.lmdb -n 60

RUN is a run of ``distill`` or ``curriculum`` with its folder ``teacher``; POOL the labelled pool that it was given,
which the first lines of the run name. Root mean squares, meV and meV/Å; the cheap level is GFN2-xTB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sets import SETS

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.training.checkpoint import load_potential
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
from pimlip_zoo.weak_labels.ensemble import predict_labels
from pimlip_zoo.weak_labels.offsets import add_labels
from pimlip_zoo.weak_labels.pool import cached_labels


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--root", required=True, help="folder of the data sets")
    parser.add_argument("--set", default="acac", choices=SETS)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("-n", type=int, default=60, help="structures of each")
    options = parser.parse_args()
    student = load_potential(options.run)
    teacher = load_potential(options.run / "teacher", difference=True)
    cheap_level = find_cheap_calculator("gfn2")
    for test in SETS[options.set].tests:
        reference = load_frames(f"{options.root}/{test}@0:{options.n}")
        cheap = cached_labels(reference, cheap_level)
        taught, learnt = add_labels(cheap, predict_labels(teacher, cheap)), predict_labels(student, cheap)
        print(f"{test}: teacher {apart(taught, reference)}; student {apart(learnt, reference)}; ", end="")
        print(f"student from teacher {apart(learnt, taught)}")
    pool = list(FrameStore(options.pool))[: options.n]
    taught, learnt = add_labels(pool, predict_labels(teacher, pool)), predict_labels(student, pool)
    print(f"pool: student from teacher {apart(learnt, taught)}")
    return 0


def apart(some: Sequence[Frame], others: Sequence[Frame]) -> str:
    forces = np.concatenate([(a.forces - b.forces).ravel() for a, b in zip(some, others, strict=True)])
    energies = np.array([a.energy - b.energy for a, b in zip(some, others, strict=True)])
    return f"E {1e3 * np.sqrt((energies**2).mean()):.2f} F {1e3 * np.sqrt((forces**2).mean()):.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
