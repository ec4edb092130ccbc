"""What weak losses cost: CPU time and memory of a training step, against a plain step.

    python benchmarks/weak/step_cost.py                       (all cases, a table)
    python benchmarks/weak/step_cost.py --head direct --case pitc+pisc --json

Plain and weak steps alternate in one process, so that what else the machine does meets both alike; times are those of
the process, not of the clock, unless --wall. Memory is the most that tensors of a step take at once.
"""

import argparse
import json
import statistics
import time

CASES = {
    "plain": {},
    "pitc": {"terms": {"pitc_first_order": {}}},
    "pitc-central": {"terms": {"pitc_central": {"detach": "forces"}}},
    "pitc+pisc": {"terms": {"pitc_first_order": {}, "pisc_triangle": {}}},
    "pitc+pisc, half": {"terms": {"pitc_first_order": {}, "pisc_triangle": {}}, "fraction": 0.5},
    "pitc+pisc, third": {"terms": {"pitc_first_order": {}, "pisc_triangle": {}}, "fraction": 0.34},
    "pitc+pisc, one copy": {"terms": {"pitc_first_order": {}, "pisc_two_estimates": {}}},
    "one copy, half": {"terms": {"pitc_first_order": {}, "pisc_two_estimates": {}}, "fraction": 0.5},
    "loop": {"terms": {"loop_trapezoid": {}}},
}


def steps(args, names):
    """Training steps by name: functions without arguments."""
    import torch

    from pimlip_zoo.config import load_config
    from pimlip_zoo.consistency import evaluate
    from pimlip_zoo.experiment import prepare
    from pimlip_zoo.experiment.run import training_module
    from pimlip_zoo.graph import collate

    torch.set_num_threads(args.threads)
    if args.few_edges is not None:
        evaluate.FEW_EDGES = args.few_edges
    made = {}
    for name in names:
        settings = [
            ("data.train", f"{args.data}"),
            ("data.valid", f"{args.data}"),
            ("model.name", args.model),
            ("model.preset", args.size),
            ("model.force_head", args.head),
        ]
        settings += [
            (f"weak.terms.{t}.{k}", v)
            for t, o in CASES[name].get("terms", {}).items()
            for k, v in (o or {"weight": 0.1}).items()
        ]
        if "fraction" in CASES[name]:
            settings.append(("weak.fraction", CASES[name]["fraction"]))
        experiment = prepare(load_config(None, settings))
        module = training_module(experiment).train()
        optimizer = module.configure_optimizers()["optimizer"]
        batches = [
            collate(experiment.train[i : i + args.batch])
            for i in range(0, len(experiment.train) - args.batch + 1, args.batch)
        ]

        def step(index, module=module, optimizer=optimizer, batches=batches):
            optimizer.zero_grad()
            loss, _, _ = module.loss(batches[index % len(batches)])
            loss.backward()
            optimizer.step()

        made[name] = step
    return made


def measure(args):
    """Median seconds per step of each case and its ratio to plain."""
    names = ["plain", *([args.case] if args.case else [n for n in CASES if n != "plain"])]
    clock = time.perf_counter if args.wall else time.process_time
    functions = steps(args, names)
    times = {name: [] for name in names}
    for index in range(args.warm_up + args.steps):
        for name in names:
            started = clock()
            functions[name](index)
            if index >= args.warm_up:
                times[name].append(clock() - started)
    memory = {name: peak(function) for name, function in functions.items()}
    plain = statistics.median(times["plain"])
    return {
        name: {
            "ms": 1e3 * statistics.median(times[name]),
            "ratio": statistics.median(times[name]) / plain,
            "peak_mb": memory[name],
            "memory_ratio": memory[name] / memory["plain"],
        }
        for name in names
    }


def peak(function):
    """MB of tensors that one step holds at most beyond those that were there before."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function(0)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 1e6


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nequip")
    parser.add_argument("--size", default="small")
    parser.add_argument("--head", default="conservative", choices=["conservative", "direct"])
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--data", default="builtin:ethanol-gfn2@0:60")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--few-edges", type=int, help="see pimlip_zoo.consistency.evaluate.FEW_EDGES")
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        print(
            json.dumps(
                {
                    "model": args.model,
                    "size": args.size,
                    "head": args.head,
                    "batch": args.batch,
                    "cases": result,
                }
            )
        )
        return
    print(f"{args.model} {args.size}, {args.head}, {args.batch} structures of {args.data}")
    for name, row in result.items():
        print(
            f"{name:22s} {row['ms']:8.1f} ms  {row['ratio']:5.2f} x   {row['peak_mb']:7.1f} MB  "
            f"{row['memory_ratio']:5.2f} x"
        )


if __name__ == "__main__":
    main()
