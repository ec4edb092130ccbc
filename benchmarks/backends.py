"""Ours on one device by several backends, a table: the kernels' worth, and cost against system size.

    python benchmarks/backends.py --device cuda --data 3bpa/train_300K.extxyz --box water.extxyz --repeats 1 2 4
    python benchmarks/backends.py --backends reference cpu --data ... --tasks train5

Runs ``speed.py case`` once for every architecture, task, backend and size, in processes of their own; ``inferbox`` also
with the box repeated. What a machine cannot run is left out with a line that says why. Wall time: on a GPU with
everything done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from pages import write_between
from speed import SIZES, TASKS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backends", nargs="+", default=None, help="as PIMLIP_ZOO_KERNELS")
    parser.add_argument("--models", nargs="+", default=sorted(SIZES), choices=sorted(SIZES))
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=("small", "big"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--repeats", nargs="+", type=int, default=[1], help="of the box, along each axis")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--data", type=Path, help="molecules, extended XYZ")
    parser.add_argument("--box", type=Path, help="periodic box, extended XYZ")
    parser.add_argument("--table", type=Path, help="file whose marked part is replaced by the table")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    backends = options.backends or (["reference", "cpu"] if on_cpu else ["reference", "triton", "cueq"])
    rows = []
    for model in options.models:
        for size in options.sizes:
            for task in options.tasks:
                for repeat in options.repeats if task == "inferbox" else [1]:
                    found = [measure(options, model, size, task, repeat, backend) for backend in backends]
                    rows += [row for row in found if row is not None]
    if not rows:
        print("nothing was measured", file=sys.stderr)
        return 1
    lines = table(rows)
    print("\n".join(lines))
    if options.table is not None:
        write_between(options.table, "backends table", lines, new="# Backends\n")
    return 0


def measure(options, model: str, size: str, task: str, repeat: int, backend: str) -> dict | None:
    command = [sys.executable, str(Path(__file__).with_name("speed.py")), "case", "--model", model]
    command += ["--size", size, "--task", task, "--device", options.device, "--repeat", str(repeat)]
    command += ["--seconds", str(options.seconds)]
    for flag in ("data", "box"):
        if getattr(options, flag) is not None:
            command += [f"--{flag}", str(getattr(options, flag))]
    environment = {**os.environ, "PIMLIP_ZOO_KERNELS": backend}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        print(f"left out {model} {size} {task} {backend}: {reason}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def table(rows: list[dict]) -> list[str]:
    lines = [
        f"{rows[0].get('gpu', 'CPU')}, torch {rows[0]['torch']}, {rows[0]['dtype']}, wall time:",
        "",
        "| architecture | size | task | atoms | edges | backend | ms | µs per atom | first call s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = row.get("bare", row)
        model = row["peer"].split("/")[1]
        lines.append(
            f"| {model} | {row['size']} | {row['task']} | {row['natoms']} | {row['edges']} | {row['mode']} "
            f"| {times['wall_ms_med']:.2f} | {1e3 * times['wall_ms_med'] / row['natoms']:.1f} "
            f"| {times['first_s']:.1f} | {row.get('gpu_mb', row['rss_mb']):.0f} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
