"""What the presets of the architectures cost: parameters, time of a training step and of an evaluation.

    python benchmarks/presets.py run --model mace --preset small
    python benchmarks/presets.py table

``run`` measures one preset on the built-in ethanol (9 atoms, 5 structures a step) and on a periodic box of 216 atoms
at the density of liquid water, one thread, float32: CPU time of the process, the median of repetitions after a warm-up.
Without --model and --preset it measures all of them, one process each.
``table`` writes ``docs/concepts/architectures.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pages import write_between

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = (
    ROOT / "benchmarks" / "results" / "presets.json",
    ROOT / "docs" / "concepts" / "architectures.md",
)
SIZES = ("small", "medium", "large")
PRESETS = {"nequip": ("compact", *SIZES), "allegro": SIZES, "mace": SIZES}
"""By architecture."""
SPECIES = ("H", "C", "N", "O")
ATOMS = 216


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure one preset, or all")
    run.add_argument("--model", choices=list(PRESETS))
    run.add_argument("--preset", choices=PRESETS["nequip"])
    run.add_argument("--seconds", type=float, default=6.0, help="CPU time of each measurement")
    commands.add_parser("table", help="write docs/concepts/architectures.md")
    options = parser.parse_args()
    if options.command == "table":
        write_table()
    elif options.model and options.preset:
        keep(measure(options.model, options.preset, options.seconds))
    else:
        for model in PRESETS if options.model is None else (options.model,):
            for preset in PRESETS[model] if options.preset is None else (options.preset,):
                arguments = ["run", "--model", model, "--preset", preset, "--seconds", str(options.seconds)]
                subprocess.run([sys.executable, __file__, *arguments], check=True)
    return 0


def measure(model: str, preset: str, seconds: float) -> dict:
    """Parameters, milliseconds, megabytes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import numpy as np
    import torch

    from pimlip_zoo.datasets.frame import Frame
    from pimlip_zoo.datasets.neighbours import frame_to_sample
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.graph import collate
    from pimlip_zoo.models.potential import Potential
    from pimlip_zoo.registry import get_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    info = get_model(model)
    config = info.configure(preset, avg_num_neighbors=8.0)
    potential = Potential(info.model(config, SPECIES))
    frames = load_frames("builtin:ethanol-gfn2/train@:5")
    batch = collate([frame_to_sample(frame, SPECIES, config.cutoff) for frame in frames])
    # Density of liquid water, jittered from a grid so that no two atoms touch.
    side = round(ATOMS ** (1 / 3) + 0.5)
    length = (ATOMS / 0.1) ** (1 / 3)
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:ATOMS]
    positions = (grid + random.uniform(-0.15, 0.15, grid.shape)) * length / side
    numbers = random.choice([1, 6, 7, 8], ATOMS)
    box = Frame(numbers=numbers, positions=positions, cell=np.eye(3) * length, pbc=np.array([True] * 3))
    graph = frame_to_sample(box, SPECIES, config.cutoff).graph

    def step() -> None:
        potential.zero_grad()
        predictions = potential(batch.graph, forces=True, virial=False)
        (predictions.forces.square().mean() + predictions.energy.square().mean()).backward()

    def evaluate() -> None:
        with torch.no_grad():
            potential(graph)

    return {
        "model": model,
        "preset": preset,
        "parameters": sum(p.numel() for p in potential.model.parameters()),
        "train_ms": timed(step, seconds),
        "box_ms": timed(evaluate, seconds),
        "edges_per_atom": round(graph.edge_index.shape[1] / ATOMS, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "torch": torch.__version__,
    }


def timed(function: Callable[[], None], seconds: float) -> float:
    """Median milliseconds of CPU time."""
    for _ in range(3):
        function()
    values: list[float] = []
    while sum(values) < seconds or len(values) < 5:
        start = time.process_time()
        function()
        values.append(time.process_time() - start)
    return round(1e3 * statistics.median(values), 1)


def keep(result: dict) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    results = [r for r in results if (r["model"], r["preset"]) != (result["model"], result["preset"])]
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps([*results, result], indent=1) + "\n")
    temporary.replace(RESULTS)
    print(json.dumps(result))


def write_table() -> None:
    """Replace what stands between the markers."""
    results = {(r["model"], r["preset"]): r for r in json.loads(RESULTS.read_text())}
    lines = [
        "| architecture | preset | parameters (H, C, N, O) | training step, ms | 216 atoms, ms | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for model, presets in PRESETS.items():
        for preset in presets:
            r = results.get((model, preset))
            cells = (
                ["not measured"] * 4
                if r is None
                else [
                    f"{r['parameters']:,}",
                    f"{r['train_ms']:.0f}",
                    f"{r['box_ms']:.0f}",
                    f"{r['peak_mb']:,}",
                ]
            )
            lines.append(f"| {model} | {preset} | {' | '.join(cells)} |")
    write_between(DOCS, "presets table", lines)


if __name__ == "__main__":
    sys.exit(main())
