"""How long ``pimlip-zoo train`` takes to its first step, with and without compiled kernels from before.

    python benchmarks/first_step.py --data 3bpa/train_300K.extxyz --models nequip allegro mace --presets small medium

Wall time from the start of the process to the end of the first step, imports, reading, neighbour lists and compilation
included, and CPU time of the process and of the compilers that it started: on a busy machine the first says little, on
a machine with two free cores it is between a half and all of the second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_TRAIN = """
import os, resource, sys, time
begun = float(os.environ["BEGUN"])
from pimlip_zoo.cli import main
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

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

register_optimizer_step_post_hook(stop)
main()
"""


def first_step(model: str, preset: str, data: Path, folder: str, cache: str) -> dict[str, float]:
    """One run, ended after its first step."""
    import time

    command = [
        sys.executable,
        "-c",
        _TRAIN,
        "train",
        "--model",
        model,
        "--preset",
        preset,
        "--data",
        str(data),
    ]
    command += ["--out", f"{folder}/{model}-{preset}", "--set", "trainer.threads=1"]
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "BEGUN": repr(time.time())}
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
                    cells = [f"{found[key]:g}" for key in found]
                    print(f"| {model}, {preset} | {state} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
