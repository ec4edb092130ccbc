"""Attacks everything that can be attacked, some of it many times, and says in one table what happened.

    make reliability
    python benchmarks/reliability.py --cases 1000 --kills 100 --seed 7 --only files --only kills

Every row is a command of its own: tests that mutate files, fill disks, race threads and break ranks, or
``benchmarks/kills.py``. A row that is finished is kept in ``--results`` and not done again while neither the package,
nor what attacks it, nor the numbers of attempts have changed; ``--again`` does it all the same. The exit code is 1
when anything went wrong or a row did not end in its time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "results" / "reliability.md"
ATTEMPTS = ROOT / "benchmarks" / "results" / "reliability_attempts.md"
"""What people tried by hand; the page ends with it."""
HEAD = """# Reliability

What `make reliability` did to the package, and what happened. One row for each kind of attack; *tried* counts files,
kills, or cases of the tests. The table is written by the command, which begins where it was stopped; it ends within 40
minutes on two cores that nobody else uses, or gives the rest up.
"""


@dataclass(frozen=True)
class Attack:
    """One row."""

    name: str
    """For ``--only``."""
    what: str
    right: str
    """What has to happen."""
    tests: tuple[str, ...] = ()
    """Files or folders of tests; none: ``kills.py``."""
    select: str = ""
    """For pytest's ``-k``."""
    kills: str = ""
    """For ``kills.py --what``."""
    minutes: float = 3.0
    """After which the row is given up."""
    mutates: bool = False
    """Whether its tests take the number of cases and their seed."""
    side_by_side: bool = True
    """Whether its tests may share the cores with each other."""


ATTACKS = (
    Attack(
        "files",
        "bytes of every file format changed, cut off, repeated",
        "read as before or refused in one line",
        ("tests/reliability",),
        minutes=6,
        mutates=True,
    ),
    Attack(
        "foreign",
        "model files of mace-torch, nequip and SevenNet that are mutated, odd or malicious",
        "nothing in them is run; read or refused in one line",
        ("tests/training/test_foreign_files.py",),
    ),
    Attack(
        "small",
        "small files that claim or unpack to much, pipes, devices",
        "refused within seconds",
        ("tests/test_small_files.py", "tests/training/test_checkpoint_size.py"),
        minutes=1.5,
    ),
    Attack(
        "damage",
        "checkpoints, stores, exported files truncated, with bits flipped, with other content",
        "refused in one line",
        (
            "tests/training/test_checkpoint.py",
            "tests/datasets/test_lmdb.py",
            "tests/deploy/test_export_torchscript.py",
            "tests/deploy/test_native.py",
        ),
        select="truncat or damage or flip or bit or corrupt or incomplete or others or checksum or nan or mapped",
        minutes=3,
    ),
    Attack(
        "labels",
        "journals, manifests and outputs of labelling that are damaged, odd, or of other structures",
        "a failure of their structure, or refused in one line; never a label",
        ("tests/labelling/test_label_damage.py",),
        minutes=1.5,
    ),
    Attack(
        "kill-convert",
        "conversion killed (SIGKILL) at random moments and started again",
        "every frame there, in order, verified",
        kills="convert",
        minutes=2,
    ),
    Attack(
        "kill-train",
        "training killed (SIGKILL) at random moments and resumed",
        "weights and metrics of an uninterrupted one, bit for bit",
        kills="train",
        minutes=4,
    ),
    Attack(
        "disk",
        "disks that are full, writers that are killed",
        "named in one line, nothing half-written, nothing left over",
        ("tests/test_files.py",),
        minutes=1,
    ),
    Attack(
        "replace",
        "runs that begin, go on or appear where weights are",
        "no weights are replaced",
        ("tests/training/test_resume_settings.py",),
        select="weights or begin or appears or killed",
        minutes=1,
    ),
    Attack(
        "locks",
        "processes and threads that want one folder at the same moment",
        "one gets it, the others are told or get the next number",
        ("tests/test_locks.py",),
        minutes=1,
    ),
    Attack(
        "threads",
        "calculators first used by eight threads at once, copied, pickled, sent to processes",
        "the numbers of one thread",
        ("tests/deploy/test_threads_and_copies.py",),
        minutes=3.5,
        side_by_side=False,
    ),
    Attack(
        "ranks",
        "ranks that meet mistakes, unreadable frames, other data",
        "all end with one clear line",
        ("tests/test_distributed.py",),
        minutes=5,
        side_by_side=False,
    ),
    Attack(
        "lost",
        "trainings that lose a rank, their folder, a worker, open files",
        "all processes end with one line that says how to go on",
        ("tests/test_lost_runs.py", "tests/training/test_lost_processes.py"),
        minutes=4,
        side_by_side=False,
    ),
    Attack(
        "lammps",
        "exported files and compiled libraries that LAMMPS is given, truncated, with wrong bits, under other hashes",
        "refused in one line, or compiled again, before anything of them is loaded",
        ("tests/lammps/test_errors.py",),
        select="wrong_bit or truncated or cache or hash",
        minutes=3.5,
    ),
)
"""Together they are given up after 40 minutes."""


@dataclass
class Outcome:
    """What became of a row."""

    key: str
    tried: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    cores: int = 0
    """That its processes might use."""
    happened: str = ""

    @property
    def well(self) -> bool:
        """Whether it is nothing to worry about."""
        return not self.failed


def key_of(attack: Attack, options: argparse.Namespace) -> str:
    """Of the package, of what attacks it, of how often."""
    digest = hashlib.sha256(repr((attack, options.cases, options.kills, options.seed)).encode())
    places = [ROOT / "pimlip_zoo", ROOT / "benchmarks" / "kills.py", *(ROOT / test for test in attack.tests)]
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run(command: list[str], minutes: float) -> tuple[int | None, str]:
    """Exit code, None when its time was over, and what it printed."""
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    try:
        out, _ = job.communicate(timeout=60 * minutes)
    except BaseException as error:
        os.killpg(job.pid, signal.SIGKILL)  # workers, too
        out, _ = job.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None, out
    return job.returncode, out


def killed(attack: Attack, options: argparse.Namespace) -> Outcome:
    """By ``kills.py``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--what", attack.kills]
        minutes = attack.minutes * options.patience
        code, out = run([*command, "--kills", str(options.kills), "--folder", folder], minutes)
    outcome = Outcome("")
    last = out.strip().splitlines()[-1] if out.strip() else "it printed nothing"
    if code is None:
        outcome.failed, outcome.happened = 1, f"not finished in {minutes:g} minutes"
        return outcome
    try:
        results = json.loads(last)
    except ValueError:
        outcome.failed, outcome.happened = 1, last[:200]
        return outcome
    outcome.tried = sum(result["kills"] for result in results.values())
    outcome.failed = int(code != 0)
    outcome.happened = "as it should" if code == 0 else last[:200]
    return outcome


def tested(attack: Attack, options: argparse.Namespace) -> Outcome:
    """By pytest."""
    missing = [test for test in attack.tests if not (ROOT / test).exists()]
    if missing:
        return Outcome("", failed=1, happened=f"not tried: there is no {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            # Of mutations the slow tests are the same with another number, which is given here.
            "not slow" if attack.mutates else "slow or not slow",
            "--tb=line",
            f"--junitxml={report}",
        ]
        command += [
            "-p",
            "no:cacheprovider",
            *attack.tests,
            *(["-k", attack.select] if attack.select else []),
        ]
        command += ["-n", "2"] if attack.side_by_side else ["-p", "no:xdist"]
        if attack.mutates:
            command += ["--mutations", str(options.cases), "--mutation-seed", str(options.seed)]
        minutes = attack.minutes * options.patience
        code, out = run(command, minutes)
        if not report.exists():
            lines = out.strip().splitlines() or ["it printed nothing"]
            why = f"not finished in {minutes:g} minutes" if code is None else lines[-1][:200]
            return Outcome("", failed=1, happened=why)
        return counted(report)


def counted(report: Path) -> Outcome:
    """What a report in JUnit's format says; a test that did something many times records the property ``tried``."""
    outcome, wrong = Outcome(""), []
    for case in ET.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            outcome.skipped += 1
            continue
        times = [p.get("value") for p in case.iter("property") if p.get("name") == "tried"]
        outcome.tried += sum(map(int, times)) if times else 1
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        if fault is not None:
            message = ((fault.get("message") or "").splitlines() or [""])[0]
            wrong.append(f"{case.get('name')}: {message[:100]}")
    outcome.failed = len(wrong)
    if not outcome.tried:
        outcome.failed, wrong = 1, ["nothing was tried"]
    outcome.happened = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    outcome.happened = outcome.happened or "as it should"
    if outcome.skipped:
        outcome.happened += f"; {outcome.skipped} skipped"
    return outcome


def table(outcomes: dict[str, Outcome], attacks: tuple[Attack, ...]) -> str:
    """All rows, in Markdown."""
    lines = [
        "| attack | has to happen | tried | went wrong | happened | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for attack in attacks:
        found = outcomes.get(attack.name)
        if found is None:
            lines.append(f"| {attack.what} | {attack.right} | | | not tried yet | |")
            continue
        happened = found.happened.replace("|", "\\|")
        numbers = f"{found.tried} | {found.failed} | {happened} | {found.seconds:.0f}"
        lines.append(f"| {attack.what} | {attack.right} | {numbers} |")
    return "\n".join(lines)


def main(attacks: tuple[Attack, ...] = ATTACKS) -> int:
    """All rows, or those that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="mutations of each file format")
    parser.add_argument("--kills", type=int, default=8, help="of conversion, and of training")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--patience", type=float, default=1.0, help="times the minutes that a row may take")
    parser.add_argument("--only", action="append", choices=[attack.name for attack in attacks])
    parser.add_argument("--again", action="store_true", help="also what is finished and has not changed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--attempts", type=Path, default=ATTEMPTS, help="text that the page ends with")
    parser.add_argument(
        "--only-page", action="store_true", help="write the page of what is kept; try nothing"
    )
    options = parser.parse_args()
    try:
        kept = {name: Outcome(**row) for name, row in json.loads(options.results.read_text()).items()}
    except (OSError, ValueError, TypeError):
        kept = {}
    for attack in attacks:
        if options.only_page:
            break
        if options.only and attack.name not in options.only:
            continue
        key = key_of(attack, options)
        if (
            not options.again
            and attack.name in kept
            and kept[attack.name].key == key
            and kept[attack.name].well
        ):
            print(f"{attack.name}: as before", flush=True)
            continue
        began = time.monotonic()
        outcome = killed(attack, options) if attack.kills else tested(attack, options)
        outcome.key, outcome.seconds = key, time.monotonic() - began
        outcome.cores = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        kept[attack.name] = outcome
        write(options.results, json.dumps({name: asdict(row) for name, row in kept.items()}, indent=1) + "\n")
        print(
            f"{attack.name}: {outcome.happened} ({outcome.seconds:.0f} s)",
            flush=True,
        )
        write_page(options, table(kept, attacks), kept)
    write_page(options, table(kept, attacks), kept)
    print(table(kept, attacks))
    return 0 if all(row.well for row in kept.values()) else 1


def together(kept: dict[str, Outcome]) -> str:
    """How long all rows took, in one sentence."""
    minutes = sum(row.seconds for row in kept.values()) / 60
    cores = sorted({row.cores for row in kept.values() if row.cores})
    on = f" on a machine of {' or '.join(map(str, cores))} cores" if cores else ""
    return f"The {len(kept)} rows took {minutes:.0f} minutes together{on}, one after the other."


def write_page(options: argparse.Namespace, rows: str, kept: dict[str, Outcome]) -> None:
    """The table, and what people tried beside it."""
    attempts = options.attempts.read_text() if options.attempts.exists() else ""
    said = f"\n{together(kept)}\n" if kept else ""
    write(options.page, f"{HEAD}\n{rows}\n{said}" + (f"\n{attempts}" if attempts else ""))


def write(path: Path, text: str) -> None:
    """As a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
