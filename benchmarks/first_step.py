"""How long ``pimlip-zoo train`` takes to its first step, with and without compiled kernels from before.

    python benchmarks/first_step.py --data 3bpa/train_300K.extxyz --models nequip allegro mace --presets small medium

Wall time from the start of the process to the end of the first step, imports, reading, neighbour lists and compilation
included, and CPU time of the process and of the compilers that it started: on a busy machine the first says little, on
a machine with two free cores it is between a half and all of the second. The last row is what the libraries alone
take: an optimiser of torch and Lightning's trainer imported, nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_STOP = """
import os, resource, sys, time
begun = float(os.environ["BEGUN"])

def stop(*_):
    import json
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({
        "wall_s": round(time.time() - begun, 2),
        "python_cpu_s": round(own.ru_utime + own.ru_stime, 2),
        "compilers_cpu_s": round(others.ru_utime + others.ru_stime, 2),
        "rss_mb": round(own.ru_maxrss / 1024),
    }), file=sys.stderr, flush=True)
    os._exit(0)
"""

_TRAIN = f"""{_STOP}
from pimlip_zoo.cli import main
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(stop)
main()
"""

_LIBRARIES = f"""{_STOP}
import torch, lightning.pytorch
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
stop()
"""


def first_step(model: str, preset: str, data: Path, folder: str, cache: str) -> dict[str, float]:
    """One run, ended after its first step."""
    command = [
        "train",
        "--model",
        model,
        "--preset",
        preset,
        "--data",
        str(data),
    ]
    command += ["--out", f"{folder}/{model}-{preset}", "--set", "trainer.threads=1"]
    return measured(_TRAIN, *command, XDG_CACHE_HOME=cache)


def measured(program: str, *arguments: str, **variables: str) -> dict[str, float]:
    """What a Python program says before it stops."""
    environment = {**os.environ, **variables, "BEGUN": repr(time.time())}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(done.stderr[-2000:] + done.stdout[-2000:])
    return json.loads(lines[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["nequip", "allegro", "mace"])
    parser.add_argument("--presets", nargs="+", default=["small"])
    options = parser.parse_args()
    if not options.data.exists():
        print(f"skipped: no structures, {options.data} is not there", file=sys.stderr)
        return 77
    print("| model | kernels | wall s | CPU s, Python | CPU s, compilers | MB |\n|---|---|---|---|---|---|")
    for model in options.models:
        for preset in options.presets:
            with tempfile.TemporaryDirectory() as folder:
                for state in ("none", "cached"):
                    found = first_step(model, preset, options.data, f"{folder}/{state}", f"{folder}/cache")
                    row(f"{model}, {preset} | {state}", found)
    row("imports alone | ", measured(_LIBRARIES))
    return 0


def row(name: str, found: dict[str, float]) -> None:
    print(f"| {name} | {' | '.join(f'{value:g}' for value in found.values())} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
