"""How fast training steps and predictions are, ours and other packages', measured the same way.

    python benchmarks/speed.py case --model nequip --size small --task train5 --data 3bpa/train_300K.extxyz
    python benchmarks/speed.py compare --data ... --box ... --peers FOLDER --table docs/results/benchmarks.md

``case`` measures one architecture on one task and prints one JSON line. ``compare`` runs ours and a peer's
script alternately, so that both see the same machine in the same state, and writes a table of ratios.

Tasks: ``train5`` and ``train32`` (steps on batches of 5 or 32 molecules of 27 atoms, energy and forces, Adam),
``infer1`` (energy and forces of one molecule), ``inferbox`` (of a periodic box). Times are process CPU time and
wall time in milliseconds. Without the data a case is skipped with a line that says so, and exit code 77.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

SPECIES = ("H", "C", "N", "O")
REFERENCES = (-13.587222780835477, -1029.4889999855063, -1484.9814568572233, -2041.9816003861047)
CUTOFF, NEIGHBOURS, ATOMS = 5.0, 13.0, 27
TASKS = ("train5", "train32", "infer1", "inferbox")
SIZES = {
    "nequip": {
        "small": {"num_layers": 2, "l_max": 2, "parity": False, "channels": 32, "radial_hidden": (64,)},
        "big": {"num_layers": 3, "l_max": 2, "parity": False, "channels": 64, "radial_hidden": (128,)},
    },
    "allegro": {
        "small": {
            "num_layers": 2,
            "l_max": 2,
            "parity": True,
            "scalar_channels": 64,
            "tensor_channels": 32,
            "embed_hidden": (64,),
            "latent_hidden": (64,),
            "readout_hidden": (32,),
        },
        "big": {
            "num_layers": 2,
            "l_max": 2,
            "parity": True,
            "scalar_channels": 128,
            "tensor_channels": 64,
            "embed_hidden": (128,),
            "latent_hidden": (128, 128),
            "readout_hidden": (64,),
        },
    },
    "mace": {
        size: {
            "num_interactions": 2,
            "l_max": 3,
            "hidden_l_max": 1,
            "channels": channels,
            "correlation": 3,
            "radial_hidden": (64, 64, 64),
            "residual_first": True,
        }
        for size, channels in (("small", 32), ("big", 128))
    },
}
_NEQUIP_MODES = ("eager", "compile", "aot")
MODES = {
    "nequip": _NEQUIP_MODES,
    "allegro": _NEQUIP_MODES,
    "mace": ("eager", "jit", "compile", "calccompile"),
}
SKIPPED = 77


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("case", help="one architecture, one task, one JSON line")
    one.add_argument("--model", required=True, choices=sorted(SIZES))
    one.add_argument("--size", default="small", choices=("small", "big"))
    one.add_argument("--task", default="train5", choices=TASKS)
    one.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    one.add_argument(
        "--format", default="module", choices=("module", "native"), help="native: infer tasks only"
    )
    one.add_argument("--table", type=float, metavar="ERROR", help="native: as of `pimlip-zoo export`")
    one.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    one.add_argument("--seconds", type=float, default=4.0, help="how long to repeat")
    one.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    one.add_argument("--repeat", type=int, default=1, help="inferbox: repeat the box along each axis")
    one.add_argument("--profile", action="store_true", help="print where the time goes instead")
    both = commands.add_parser("compare", help="ours and the peers' alternately, a table of ratios")
    both.add_argument("--models", nargs="+", default=["nequip", "allegro", "mace"], choices=sorted(SIZES))
    both.add_argument("--sizes", nargs="+", default=["small"], choices=("small", "big"))
    both.add_argument(
        "--tasks", nargs="*", default=list(TASKS), choices=TASKS, help="none: only write the table"
    )
    both.add_argument("--peers", type=Path, help="folder with an environment for each peer")
    both.add_argument("--peer-scripts", type=Path, help="folder with peers_nequip.py, peers_mace.py")
    both.add_argument(
        "--modes",
        nargs="+",
        default=["eager"],
        choices=sorted({mode for modes in MODES.values() for mode in modes}),
        help="modes of the peers' scripts; aot: of peers_aot.py",
    )
    both.add_argument("--peer-models", type=Path, help="folder with MODEL-SIZE.nequip.pt2, for mode aot")
    both.add_argument("--format", default="module", choices=("module", "native"), help="ours in infer tasks")
    both.add_argument(
        "--radial-table", type=float, metavar="ERROR", help="of a native model, see `export --table`"
    )
    both.add_argument("--rounds", type=int, default=3)
    both.add_argument("--threads", type=int, default=1, help="of ours and the peer; from 2 on wall times")
    both.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    both.add_argument("--table", type=Path, help="file whose marked part is replaced by the table")
    for command in (one, both):
        command.add_argument(
            "--data", type=Path, default=_path("PIMLIP_ZOO_BENCH_DATA"), help="molecules, extended XYZ"
        )
        command.add_argument(
            "--box", type=Path, default=_path("PIMLIP_ZOO_BENCH_BOX"), help="periodic box, extended XYZ"
        )
    options = parser.parse_args()
    for model in options.models if options.command == "compare" else ():
        if unknown := [mode for mode in options.modes if mode not in MODES[model]]:
            both.error(
                f"argument --modes: {model}'s peer has no mode {unknown[0]} (it has {', '.join(MODES[model])})"
            )
    return case(options) if options.command == "case" else compare(options)


def _path(variable: str) -> Path | None:
    return Path(os.environ[variable]) if variable in os.environ else None


def case(options: argparse.Namespace) -> int:
    source = options.box if options.task == "inferbox" else options.data
    if source is None or not source.exists():
        flag = "--box" if options.task == "inferbox" else "--data"
        print(f"skipped {options.model} {options.task}: no structures, give {flag} FILE", file=sys.stderr)
        return SKIPPED
    started = time.perf_counter()
    import torch

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"skipped {options.model} {options.task}: torch sees no GPU", file=sys.stderr)
        return SKIPPED
    potential = build(options).to(device)
    record = {
        "peer": f"pimlip-zoo/{options.model}",
        **{key: getattr(options, key) for key in ("size", "dtype", "task", "device")},
        "mode": os.environ.get("PIMLIP_ZOO_KERNELS", "auto"),
        "params": sum(p.numel() for p in potential.model.parameters()),
        "t_import_s": round(time.perf_counter() - started, 2),
        "calib0": calibration(),
    }
    if options.task.startswith("train"):
        step, record["edges"], record["natoms"] = training_step(
            potential, source, int(options.task[5:]), device
        )
        if options.profile:
            return _profile(step)
        record.update(timed(step, options.seconds, device))
    else:
        if options.format == "native":
            predict, through_ase, record["edges"], record["natoms"] = native_prediction(
                potential, source, options.table
            )
            record["mode"] = "native" if options.table is None else f"native, table {options.table:g}"
        else:
            predict, record["edges"], record["natoms"] = prediction(potential, source, options.repeat, device)
            through_ase = ase_prediction(potential, source, options.repeat, device)
        if options.profile:
            return _profile(predict)
        record["bare"] = timed(predict, options.seconds, device)
        record["ase"] = timed(through_ase, options.seconds, device)
    record["calib1"] = calibration()
    record["rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
        record["gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    record.update(threads=torch.get_num_threads(), torch=torch.__version__, load=os.getloadavg()[0])
    print(json.dumps(record), flush=True)
    return 0


def build(options: argparse.Namespace):
    """The potential of a case, with the reference energies and the scale that the peers get."""
    import torch

    from pimlip_zoo.models.potential import Potential
    from pimlip_zoo.registry import get_model

    torch.manual_seed(0)
    info = get_model(options.model)
    chosen = SIZES[options.model][options.size]
    config = info.configure(**chosen, cutoff=CUTOFF, avg_num_neighbors=NEIGHBOURS)
    references = torch.tensor(REFERENCES, dtype=torch.float64)
    return Potential(info.model(config, SPECIES), energy_references=references).set_dtype(
        getattr(torch, options.dtype)
    )


def samples(source: Path, count: int, repeat: int = 1):
    from ase.io import read

    from pimlip_zoo.datasets.frame import Frame
    from pimlip_zoo.datasets.neighbours import frame_to_sample

    made = []
    for found in read(source, f":{count}"):
        atoms = found.repeat(repeat) if repeat > 1 else found
        labels = atoms.calc.results if atoms.calc is not None else {}
        frame = Frame(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=labels.get("energy"),
            forces=labels.get("forces"),
        )
        made.append(frame_to_sample(frame, SPECIES, CUTOFF))
    return made


def training_step(potential, source: Path, size: int, device):
    import torch

    from pimlip_zoo.graph import collate, graph_to

    frames = samples(source, 4 * size)
    batches = []
    for i in range(4):
        batch = collate(frames[i * size : (i + 1) * size])
        labels = (batch.labels.energy.to(device), batch.labels.forces.to(device))
        batches.append((graph_to(batch.graph, device), *labels))
    optimizer = torch.optim.Adam([p for p in potential.parameters() if p.requires_grad], lr=1e-3, fused=True)
    potential.train()

    def step(i: int) -> None:
        graph, energies, forces = batches[i % len(batches)]
        optimizer.zero_grad(set_to_none=True)
        predicted = potential(graph, virial=False)
        energy = (((predicted.energy - energies) / ATOMS) ** 2).mean()
        loss = energy + ((predicted.forces - forces) ** 2).mean()
        loss.backward()
        optimizer.step()

    return step, int(batches[0][0].edge_index.shape[1]), len(batches[0][0].positions)


def prediction(potential, source: Path, repeat: int, device):
    import torch

    from pimlip_zoo.graph import graph_to

    graph = graph_to(samples(source, 1, repeat)[0].graph, device)
    potential.eval().requires_grad_(False)

    def predict(_: int) -> None:
        with torch.no_grad():
            potential(graph, virial=False)

    return predict, int(graph.edge_index.shape[1]), len(graph.positions)


def native_prediction(potential, source: Path, table: float | None):
    """The same by a native model: its library alone, and through ASE with moving atoms."""
    import tempfile

    import numpy as np
    from ase.io import read

    from pimlip_zoo.deploy.native.calculator import NativeCalculator
    from pimlip_zoo.deploy.native.export import export_native

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pimlip"
        export_native(potential, path, table=table)
        calculator = NativeCalculator(path)
    graph = samples(source, 1)[0].graph
    atoms, species = read(source, "0"), graph.species.numpy()
    pairs = (graph.edge_index.numpy(), graph.edge_shift.numpy())
    atoms.calc = calculator
    start, random = atoms.positions.copy(), np.random.RandomState(0)

    def bare(_: int) -> None:
        calculator.model.structure(start, species, atoms.cell.array, pairs)

    def through_ase(_: int) -> None:
        atoms.positions = start + 0.01 * random.randn(*start.shape)
        atoms.get_potential_energy()
        atoms.get_forces()

    return bare, through_ase, int(graph.edge_index.shape[1]), len(start)


def ase_prediction(potential, source: Path, repeat: int, device):
    """Energy and forces through the ASE calculator with moving atoms, neighbour list included."""
    import numpy as np
    from ase.io import read

    from pimlip_zoo.deploy.ase import PimlipCalculator

    atoms = read(source, "0").repeat(repeat)
    atoms.calc = PimlipCalculator(potential, device=device)
    start, random = atoms.positions.copy(), np.random.RandomState(0)

    def predict(_: int) -> None:
        atoms.positions = start + 0.01 * random.randn(*start.shape)
        atoms.get_potential_energy()
        atoms.get_forces()

    return predict


def timed(function, seconds: float, device, least: int = 4, most: int = 200) -> dict[str, float]:
    """Median and minimum of repeated calls; the first call apart, since it compiles what is missing."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    begun = time.perf_counter()
    function(0)
    wait()
    first = time.perf_counter() - begun
    for i in range(1, 4):
        function(i)
    wait()
    wall, cpu, begun = [], [], time.perf_counter()
    while len(wall) < least or (time.perf_counter() - begun < seconds and len(wall) < most):
        c, w = time.process_time(), time.perf_counter()
        function(len(wall))
        wait()
        wall.append(1e3 * (time.perf_counter() - w))
        cpu.append(1e3 * (time.process_time() - c))
    return {
        "n": len(wall),
        "first_s": round(first, 3),
        "wall_ms_med": round(statistics.median(wall), 3),
        "wall_ms_min": round(min(wall), 3),
        "cpu_ms_med": round(statistics.median(cpu), 3),
        "cpu_ms_min": round(min(cpu), 3),
    }


def calibration(repeats: int = 8) -> list[float]:
    """CPU ms, minimum and median, of 5 matrix products of 384³ and of 2,000 additions of 16 numbers."""
    import torch

    a, b, c = torch.randn(384, 384), torch.randn(384, 384), torch.ones(16)
    products, additions = [], []
    for _ in range(repeats):
        begun = time.process_time()
        for _ in range(5):
            a @ b
        products.append(1e3 * (time.process_time() - begun))
        begun = time.process_time()
        for _ in range(2000):
            c + c
        additions.append(1e3 * (time.process_time() - begun))
    return [round(f(values), 3) for values in (products, additions) for f in (min, statistics.median)]


def _profile(function) -> int:
    import torch

    for i in range(5):
        function(i)
    with torch.profiler.profile(activities=None) as profile:
        for i in range(10):
            function(i)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=48))
    _profile_sweeps(function)
    return 0


def _profile_sweeps(function, repeats: int = 100) -> None:
    """CPU time of the calling thread in compiled kernels, in the sweeps beside them, and in all the rest."""
    from pimlip_zoo.compiled.kernels.library import KernelLibrary
    from pimlip_zoo.compiled.sweeps import Sweeps

    libraries, spent, records = {}, Counter(), []
    plain = KernelLibrary.call

    def noted(library, kernel, **arguments):
        libraries[id(library)] = library
        plain(library, kernel, **arguments)

    def clocked(name, inner):
        def call(*args):
            begun, kernels = time.thread_time(), spent["kernels"]
            out = inner(*args)
            spent[name] += 1e3 * (time.thread_time() - begun) - (spent["kernels"] - kernels)
            return out

        return call

    with mock.patch.object(KernelLibrary, "call", noted):
        function(0)
    with contextlib.ExitStack() as patches:
        for library in libraries.values():
            functions = library._functions  # noqa: SLF001
            clocks = {kernel: clocked("kernels", inner) for kernel, inner in functions.items()}
            patches.enter_context(mock.patch.dict(functions, clocks))
        for name in ("forward", "adjoint", "tangent", "second"):
            patches.enter_context(mock.patch.object(Sweeps, name, clocked(name, getattr(Sweeps, name))))
        for i in range(repeats):
            spent.clear()
            begun = time.thread_time()
            function(i)
            total = 1e3 * (time.thread_time() - begun)
            records.append({**spent, "outside the sweeps": total - sum(spent.values()), "together": total})
    print("CPU ms of one call, medians; sweeps without the kernels that they call:")
    for name in records[0]:
        print(f"  {name:20s} {statistics.median(record[name] for record in records):8.3f}")


def compare(options: argparse.Namespace) -> int:
    if not (options.peers and options.peer_scripts) and options.tasks:
        print("skipped: give --peers and --peer-scripts", file=sys.stderr)
        return SKIPPED
    rows = []
    for model in options.models:
        for size in options.sizes:
            for task in options.tasks:
                for mode in options.modes:
                    rows += _compare_one(options, model, size, task, mode)
                    _keep(options.results, rows)
    if options.table is not None:
        _write_table(options.table, json.loads(options.results.read_text()))
    return 0


def _keep(path: Path, rows: list[dict]) -> None:
    """Put rows in place of those of the same case, so that a table can be measured in several goes."""
    names = {"model": "", "size": "", "task": "", "mode": "", "format": "module", "threads": 1}
    key = lambda row: tuple(str(row.get(name, usual)) for name, usual in names.items())  # noqa: E731
    known = {key(row): row for row in (json.loads(path.read_text()) if path.exists() else [])}
    known.update({key(row): row for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".new")
    made.write_text(json.dumps([known[k] for k in sorted(known)], indent=1) + "\n")
    made.replace(path)


def _compare_one(options: argparse.Namespace, model: str, size: str, task: str, mode: str) -> list[dict]:
    peer = "mace" if model == "mace" else "nequip"
    python = options.peers / peer / "bin" / "python"
    script = options.peer_scripts / f"peers_{peer}.py"
    ours = [sys.executable, __file__, "case", "--model", model, "--size", size, "--task", task]
    for flag in ("data", "box"):
        if getattr(options, flag) is not None:
            ours += [f"--{flag}", str(getattr(options, flag))]
    form = options.format if task.startswith("infer") else "module"
    ours += ["--format", form]
    if form == "native" and options.radial_table is not None:
        ours += ["--table", str(options.radial_table)]
        form = f"native, table {options.radial_table:g}"
    compiled = f"compiled:{options.peer_models}/{model}-{size}.nequip.pt2"
    theirs = [str(python), str(script), model, size, "float32", task, compiled if mode == "aot" else mode]
    results: dict[str, list[dict]] = {"ours": [], "peer": []}
    environment = {
        **os.environ,
        "BENCH_OUT": os.environ.get("BENCH_OUT", os.devnull),
        "OMP_NUM_THREADS": str(options.threads),
    }
    # CPU time of several threads counts their waiting for one another, too.
    median = "cpu_ms_med" if options.threads == 1 else "wall_ms_med"
    for _ in range(options.rounds):  # alternately: a busy machine is busy for both
        for name, command in (("ours", ours), ("peer", theirs)):
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode or not lines:
                print(
                    f"skipped {model} {size} {task} {mode}: {name}: {done.stderr.strip()[-300:]}",
                    file=sys.stderr,
                )
                return []
            results[name].append(json.loads(lines[-1]))
    row = {
        "model": model,
        "size": size,
        "task": task,
        "mode": mode,
        "format": form,
        "threads": options.threads,
    }
    # What has no bare evaluation is compared through ASE.
    timed_as = "bare" if all("bare" in r for records in results.values() for r in records) else "ase"
    for name, records in results.items():
        inner = [r.get(timed_as, r) for r in records]
        row[name] = statistics.median(r[median] for r in inner)
        row[f"{name}_first_s"] = statistics.median(r["first_s"] for r in inner)
        row[f"{name}_mb"] = statistics.median(r["rss_mb"] for r in records)
        if all("ase" in r for r in records):
            row[f"{name}_ase"] = statistics.median(r["ase"][median] for r in records)
    print(json.dumps({**row, "ratio": round(row["peer"] / row["ours"], 2)}), flush=True)
    return [row]


def _through_ase(row: dict) -> str:
    """Two cells of the table, empty where it was not measured."""
    if "peer_ase" not in row or "ours_ase" not in row:
        return " | "
    return f"{row['peer_ase']:.2f} / {row['ours_ase']:.2f} | {row['peer_ase'] / row['ours_ase']:.1f}"


def _write_table(path: Path, rows: list[dict]) -> None:
    from pages import write_between

    head = [
        (
            "| architecture | size | task | peer's mode | ours | threads | peer ms | ours ms | ratio "
            "| through ASE: peer / ours | ratio | peer MB | ours MB | first call s, peer / ours |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    body = [
        f"| {r['model']} | {r['size']} | {r['task']} | {r['mode']} | {r.get('format', 'module')} "
        f"| {r.get('threads', 1)} | {r['peer']:.2f} | {r['ours']:.2f} | {r['peer'] / r['ours']:.1f} "
        f"| {_through_ase(r)} | {r['peer_mb']:.0f} | {r['ours_mb']:.0f} "
        f"| {r['peer_first_s']:.1f} / {r['ours_first_s']:.1f} |"
        for r in rows
    ]
    write_between(path, "speed table", [*head, *body], new="# Speed\n")


if __name__ == "__main__":
    sys.exit(main())
