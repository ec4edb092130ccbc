"""A model of the size of MACE-MP-0 here and in mace-torch, side by side in one run.

    pip install mace-torch==0.3.16  # in an environment of its own, whose Python is PEER
    PEER benchmarks/reference/mace_layouts.py build FOLDER mp-0a-medium
    python benchmarks/foundation_mace.py --peer PEER --file FOLDER/mp-0a-medium.model --work FOLDER

The weights are random: times do not depend on them. Engines are processes of their own that take turns, round by round,
on one thread each: ``mace`` (the package's ASE calculator), ``ase`` (the converted run's) and ``native`` (that of the
exported file), all in float32. Silicon crystals are displaced by 0.01 Å before each evaluation of energy, forces and
stress. Times are those of the process (CPU), the median of all rounds; ``deviation`` is the largest one of the forces
from those of the package, relative to its largest force. Memory is the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENGINES = ("mace", "ase", "native")
NAMES = {"mace": "mace-torch, ASE", "ase": "here, ASE", "native": "here, native"}
CAST = "import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=False).float(), sys.argv[2])"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="a Python that has mace-torch")
    parser.add_argument("--file", type=Path, help="a model of mace-torch")
    parser.add_argument("--head", help="which head, of a model with several")
    parser.add_argument(
        "--work", type=Path, help="folder for the converted models; those that are there are used"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2], help="cubic cells along each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-round", type=int, default=2, help="evaluations in a row")
    parser.add_argument("--prepare", action="store_true", help="convert the models and stop")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, options.file, options.head)
    if options.file is None or options.work is None or options.peer is None:
        parser.error("give --peer, --file and --work")
    models = prepare(options)
    if not options.prepare:
        print("\n".join(measure(models, options)))
    return 0


def prepare(options: argparse.Namespace) -> dict[str, Path]:
    """The model in the form that each engine takes."""
    command = [sys.executable, "-m", "pimlip_zoo"]
    models = {"mace": options.work / "single.model", "ase": options.work / "run"}
    models["native"] = options.work / "model.pimlip"
    head = ["--head", options.head] if options.head else []
    steps = {
        "mace": [str(options.peer), "-W", "ignore", "-c", CAST, str(options.file), str(models["mace"])],
        "ase": [*command, "import", "mace", str(models["mace"]), *head, "-o", str(models["ase"])],
        "native": [*command, "export", str(models["ase"]), "--format", "native", "-o", str(models["native"])],
    }
    for name, step in steps.items():
        if not models[name].exists():
            subprocess.run(step, check=True, stdout=subprocess.DEVNULL, env=environment(name))
    return models


def environment(engine: str) -> dict[str, str]:
    found = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if engine == "mace":
        found.pop("PYTHONPATH", None)
    return found


def measure(models: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """The rows of the table."""
    python = {name: str(options.peer) if name == "mace" else sys.executable for name in ENGINES}
    workers = {name: Worker(python[name], name, models[name], options.head) for name in ENGINES}
    times: dict[tuple[str, int], list[float]] = {}
    for round_ in range(options.rounds):
        for cells in options.sizes:
            for name, worker in workers.items():
                found = worker.ask("evaluate", cells, options.per_round + (round_ == 0))
                times.setdefault((name, cells), []).extend(found[1 if round_ == 0 else 0 :])
    forces = {name: worker.ask("forces", options.sizes[-1], 1) for name, worker in workers.items()}
    memory = {name: worker.ask("memory", 0, 1)[0] for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    head = [f"{8 * cells**3} atoms, ms" for cells in options.sizes] + ["deviation of forces", "memory, MB"]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    largest = max(map(abs, forces["mace"]))
    for name in ENGINES:
        cells_ = []
        for cells in options.sizes:
            value = statistics.median(times[name, cells])
            ratio = statistics.median(times["mace", cells]) / value
            cells_.append(f"{1000 * value:.1f}" + (f" ({ratio:.1f}x)" if name != "mace" else ""))
        deviation = max(abs(a - b) for a, b in zip(forces[name], forces["mace"], strict=True)) / largest
        cells_ += [f"{deviation:.0e}" if name != "mace" else "", f"{memory[name]:.0f}"]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells_) + " |")
    return lines


class Worker:
    """A process that evaluates when it is told to."""

    def __init__(self, python: str, engine: str, model: Path, head: str | None) -> None:
        of_head = ["--head", head] if head else []
        self.process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--worker", engine, "--file", str(model), *of_head],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(engine),
            text=True,
        )

    def ask(self, *order: object) -> list[float]:
        """Send an order and wait for its numbers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("["):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended")

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def work(engine: str, model: Path, head: str | None) -> int:
    """Take orders until there are none."""
    from ase.build import bulk

    calculator = None
    for line in sys.stdin:
        order, cells, repeats = json.loads(line)
        found: list[float] = []
        if order == "memory":
            import resource

            found = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
        else:
            calculator = calculator or calculator_of(engine, model, head)
            atoms = bulk("Si", cubic=True) * (cells, cells, cells)
            for seed in range(repeats):
                atoms.rattle(0.01, seed=seed)
                before = time.process_time()
                calculator.calculate(atoms, ["energy", "forces", "stress"])
                found.append(time.process_time() - before)
            if order == "forces":
                found = calculator.results["forces"].reshape(-1).tolist()
        print(json.dumps(found), flush=True)
    return 0


def calculator_of(engine: str, model: Path, head: str | None) -> Any:
    """The ASE calculator of an engine."""
    if engine == "native":
        from pimlip_zoo.deploy.native.calculator import NativeCalculator

        return NativeCalculator(model, threads=1)
    import torch

    torch.set_num_threads(1)
    if engine == "mace":
        from mace.calculators import MACECalculator

        of_head = {"head": head} if head else {}
        return MACECalculator(model_paths=str(model), device="cpu", default_dtype="float32", **of_head)
    from pimlip_zoo.deploy.ase import PimlipCalculator
    from pimlip_zoo.training.checkpoint import load_potential

    return PimlipCalculator(load_potential(model))


if __name__ == "__main__":
    sys.exit(main())
