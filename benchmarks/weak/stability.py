"""How long molecular dynamics with trained runs lasts: NVE and NVT, at several temperatures, several seeds.

    python benchmarks/weak/stability.py --structure builtin:ethanol-gfn2/valid@0:1 --out stability RUN RUN ...

A simulation ends when a bond leaves its physical length, atoms collapse, energy is not conserved (NVE) or the
temperature runs away; see pimlip_zoo/deploy/stability.py. Every simulation is a folder; what is finished is not
repeated.
"""

import argparse
import json
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--structure", required=True, help="DATA; the first structure is simulated")
    parser.add_argument("--temperatures", default="300,500")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("stability"))
    args = parser.parse_args()

    import pimlip_zoo
    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.deploy.md import MDSettings, run_md

    frame = load_frames(args.structure)[0]
    print("| run | ensemble | K | lasted ps (each seed) | ends |")
    print("|---|---|---|---|---|")
    for run in args.runs:
        for ensemble in ("nve", "nvt"):
            for temperature in (float(t) for t in args.temperatures.split(",")):
                lasted, ends = [], []
                for seed in range(args.seeds):
                    folder = args.out / f"{Path(run).name}-{ensemble}-{temperature:.0f}K-seed{seed}"
                    if not (folder / "result.json").exists():
                        atoms = frame_to_atoms(frame)
                        atoms.calc = pimlip_zoo.calculator(run)
                        settings = MDSettings(
                            ensemble=ensemble,
                            temperature=temperature,
                            steps=args.steps,
                            timestep=args.timestep,
                            seed=seed,
                        )
                        run_md(atoms, settings, folder)
                    result = json.loads((folder / "result.json").read_text())
                    lasted.append(result["steps"] * args.timestep / 1000)
                    ends.append(result["verdict"])
                times = ", ".join(f"{time:.1f}" for time in lasted)
                print(
                    f"| {run} | {ensemble} | {temperature:.0f} | {times} | {'; '.join(dict.fromkeys(ends))} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
