"""A foundation model here and in its own package, side by side in one run.

    pip install sevenn==0.13.0  # or mace-torch==0.3.16, in an environment of its own, whose Python is PEER
    python benchmarks/foundation.py sevenn --peer PEER --file CHECKPOINT --work FOLDER

    PEER benchmarks/reference/mace_layouts.py build FOLDER mp-0a-medium  # random weights: times do not depend on them
    python benchmarks/foundation.py mace --peer PEER --file FOLDER/mp-0a-medium.model --work FOLDER

Engines are processes of their own that take turns, round by round, on one thread each: ``peer`` (the package's ASE
calculator), ``ase`` (the converted run's) and ``native`` (that of the exported file, without and with tables). Silicon
crystals are displaced by 0.01 Å before each evaluation of energy, forces and stress; models of mace-torch compute in
float32. Times are those of the process (CPU), the median of all rounds; ``deviation`` is the largest one of the forces
from those of the package, relative to its largest force. Memory is the largest resident set of a process that
evaluates one structure; ``first force`` is what a process takes from its start to the forces of 64 atoms, kernels
compiled before. A fine-tuning step (sevenn) is loss, gradient and Adam for four crystals of 8 atoms with energies and
forces.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from pages import write_between

ENGINES = ("peer", "ase", "native", "native-table")
NAMES = {"ase": "here, ASE", "native": "here, native", "native-table": "here, native, tables"}
IMPORTS = {"sevenn": "sevennet", "mace": "mace"}
"""Package -> how ``pimlip-zoo import`` calls its models."""
# Run by the package that the model is of, which has no other reader for its whole modules.
CAST = "import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=False).float(), sys.argv[2])"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", choices=IMPORTS, help="whose model it is")
    parser.add_argument(
        "--peer", type=Path, help="a Python that has it; without one only this package is timed"
    )
    parser.add_argument("--file", type=Path, required=True, help="a model with one level of theory")
    parser.add_argument(
        "--work", type=Path, help="folder for the converted models; those that are there are used"
    )
    parser.add_argument("--head", help="which head, of a model of mace-torch with several")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4], help="cubic cells along each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-round", type=int, default=2, help="evaluations in a row")
    parser.add_argument("--error", default="1e-4", help="of tables, eV and eV/Å")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--prepare", action="store_true", help="convert the models and stop")
    parser.add_argument("--table", type=Path, help="file whose marked part is replaced by the table")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.package, options.worker, options.file, options.head)
    if options.work is None:
        parser.error("give --work")
    engines = [name for name in options.engines if name != "peer" or options.peer is not None]
    models = prepare(engines, options)
    if options.prepare:
        return 0
    lines = measure(engines, models, options)
    print("\n".join(lines))
    if options.table is not None:
        write_between(options.table, "foundation table", lines)
    return 0


def prepare(engines: list[str], options: argparse.Namespace) -> dict[str, Path]:
    """The model in the form that each engine takes."""
    command, folder = [sys.executable, "-m", "pimlip_zoo"], options.work
    folder.mkdir(parents=True, exist_ok=True)
    models = {"peer": options.file, "ase": folder / "run", "native": folder / "a.pimlip"}
    models["native-table"] = folder / "b.pimlip"
    steps = {}
    if options.package == "mace":
        models["peer"] = folder / "single.model"
        steps["peer"] = [
            str(options.peer),
            "-W",
            "ignore",
            "-c",
            CAST,
            str(options.file),
            str(models["peer"]),
        ]
    steps["ase"] = [
        *command,
        "import",
        IMPORTS[options.package],
        str(models["peer"]),
        *(["--head", options.head] if options.head else []),
        "-o",
        str(models["ase"]),
    ]
    export = [*command, "export", str(models["ase"]), "--format", "native", "-o"]
    steps["native"] = [*export, str(models["native"])]
    steps["native-table"] = [*export, str(models["native-table"]), "--table", options.error]
    for name, step in steps.items():
        if (name in ("peer", "ase") or name in engines) and not models[name].exists():
            subprocess.run(step, check=True, stdout=subprocess.DEVNULL, env=environment(name))
    return models


def environment(engine: str) -> dict[str, str]:
    """One thread; the peer does not see this package."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if engine == "peer":
        found.pop("PYTHONPATH", None)
    return found


def measure(engines: list[str], models: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """The rows of the table."""
    python = {name: str(options.peer) if name == "peer" else sys.executable for name in engines}
    start = lambda name: Worker(python[name], options.package, name, models[name], options.head)  # noqa: E731
    trains = options.package == "sevenn"
    workers = {name: start(name) for name in engines}
    times: dict[tuple[str, str], list[float]] = {}
    sizes = [8 * n**3 for n in options.sizes]
    for round_ in range(options.rounds):
        for n in options.sizes:
            for name, worker in workers.items():
                found = worker.ask("evaluate", n, options.per_round + (round_ == 0))
                times.setdefault((name, f"{8 * n**3}"), []).extend(found[1 if round_ == 0 else 0 :])
        for name in engines:
            if trains and name in ("peer", "ase"):
                found = workers[name].ask("train", 1, options.per_round + (round_ == 0))
                times.setdefault((name, "train"), []).extend(found[1 if round_ == 0 else 0 :])
    forces = {name: worker.ask("forces", options.sizes[-1], 1) for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    memory, first = {}, {}
    for name in engines:
        worker = start(name)
        first[name] = worker.ask("first", 2, 1)[0]
        worker.close()
        worker = start(name)
        worker.ask("evaluate", max(options.sizes), 1)
        memory[name] = worker.ask("memory", 0, 1)[0]
        worker.close()
    base = "peer" if "peer" in engines else None
    head = [f"{size} atoms, ms" for size in sizes] + ["fine-tuning step, ms"] * trains
    head += ["deviation of forces"] * (base is not None) + [
        f"memory at {max(sizes)}, MB",
        "first force, CPU s",
    ]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name in engines:
        cells = [cell(times, name, what, base) for what in [*map(str, sizes), *["train"] * trains]]
        if base is not None:
            largest = max(map(abs, forces[base]))
            far = max(abs(a - b) for a, b in zip(forces[name], forces[base], strict=True)) / largest
            cells.append("" if name == base else f"{far:.0e}")
        cells += [f"{memory[name]:.0f}", f"{first[name]:.1f}"]
        said = NAMES.get(name, f"{options.package}, ASE")
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    return lines


def cell(times: dict[tuple[str, str], list[float]], name: str, what: str, base: str | None) -> str:
    """A median, and how many times faster than the peer."""
    if (name, what) not in times:
        return ""
    value = statistics.median(times[name, what])
    text = f"{1000 * value:.1f}"
    if base is not None and name != base:
        text += f" ({statistics.median(times[base, what]) / value:.1f}x)"
    return text


class Worker:
    """A process that evaluates when it is told to."""

    def __init__(self, python: str, package: str, engine: str, model: Path, head: str | None) -> None:
        of_head = ["--head", head] if head else []
        self.process = subprocess.Popen(
            [
                python,
                str(Path(__file__).resolve()),
                package,
                "--worker",
                engine,
                "--file",
                str(model),
                *of_head,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
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


def work(package: str, engine: str, model: Path, head: str | None) -> int:
    """Take orders until there are none."""
    calculator, step = None, None
    for line in sys.stdin:
        order, cells, repeats = json.loads(line)
        found: list[float] = []
        if order == "memory":
            import resource

            found = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
        elif order == "train":
            step = step or (train_peer if engine == "peer" else train_here)(model)
            found = [cpu(step) for _ in range(repeats)]
        else:
            calculator = calculator or calculator_of(package if engine == "peer" else engine, model, head)
            atoms = silicon(cells)
            for seed in range(repeats):
                atoms.rattle(0.01, seed=seed)
                found.append(cpu(partial(calculator.calculate, atoms, ["energy", "forces", "stress"])))
            if order == "first":
                found = [time.process_time()]
            elif order == "forces":
                found = calculator.results["forces"].reshape(-1).tolist()
        print(json.dumps(found), flush=True)
    return 0


def cpu(call: Any) -> float:
    """Seconds of this process."""
    before = time.process_time()
    call()
    return time.process_time() - before


def silicon(cells: int) -> Any:
    """A crystal of ``8 cells^3`` atoms."""
    from ase.build import bulk

    return bulk("Si", cubic=True) * (cells, cells, cells)


def calculator_of(engine: str, model: Path, head: str | None) -> Any:
    """The ASE calculator of an engine."""
    if engine.startswith("native"):
        from pimlip_zoo.deploy.native.calculator import NativeCalculator

        return NativeCalculator(model, threads=1)
    import torch

    torch.set_num_threads(1)
    if engine == "sevenn":
        from sevenn.calculator import SevenNetCalculator

        return SevenNetCalculator(str(model), device="cpu")
    if engine == "mace":
        from mace.calculators import MACECalculator

        of_head = {"head": head} if head else {}
        return MACECalculator(model_paths=str(model), device="cpu", default_dtype="float32", **of_head)
    from pimlip_zoo.deploy.ase import PimlipCalculator
    from pimlip_zoo.training.checkpoint import load_potential

    return PimlipCalculator(load_potential(model))


def four() -> list[Any]:
    """What is trained on."""
    found = [silicon(1) for _ in range(4)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.1, seed=seed)
    return found


def train_peer(model: Path) -> Any:
    """A step of that package: its own graphs, model and losses of energies per atom and forces."""
    import sevenn._keys as key
    import torch
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from sevenn.util import model_from_checkpoint
    from torch_geometric.loader import DataLoader

    network, config = model_from_checkpoint(str(model))
    network.set_is_batch_data(True)
    network.train()
    graphs = [AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(a, config["cutoff"])) for a in four()]
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        (batch,) = list(DataLoader(graphs, batch_size=4))
        out = network(batch)
        per_atom = (out[key.PRED_TOTAL_ENERGY] + 43.0) / 8
        loss = per_atom.square().mean() + out[key.PRED_FORCE].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def train_here(model: Path) -> Any:
    """The same here."""
    import torch

    from pimlip_zoo.datasets.frame import Frame
    from pimlip_zoo.datasets.neighbours import frame_to_sample
    from pimlip_zoo.graph import collate
    from pimlip_zoo.training.finetune import start_from

    potential = start_from(model)
    frames = [Frame(numbers=a.numbers, positions=a.positions, cell=a.cell.array, pbc=a.pbc) for a in four()]
    samples = [frame_to_sample(frame, potential.species, potential.cutoff) for frame in frames]
    optimizer = torch.optim.Adam([p for p in potential.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        out = potential(collate(samples).graph)
        per_atom = (out.energy + 43.0) / 8
        loss = per_atom.square().mean() + out.forces.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
