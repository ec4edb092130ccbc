"""``pimlip-zoo train``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pimlip_zoo.config import RunConfig

app = typer.Typer()

_FEW_STEPS = 10
"""Fewer say nothing of how long a step takes."""

_FEW_LABELS = 200
"""What 200 structures gave, 50 came near to with a start that knows GFN2-xTB (docs/results/organic-start.md)."""

EXAMPLE = """
Examples:

  pimlip-zoo train --model nequip                                   (built-in ethanol data)

  pimlip-zoo train --model mace --data train.extxyz --test test.extxyz --max-time 2h

  pimlip-zoo train --from runs/nequip-1 --data new.extxyz --set optimizer.lr=0.001

  pimlip-zoo train --out runs/nequip --resume
"""


@app.command(epilog=EXAMPLE)
def train(
    model: Annotated[
        str | None, typer.Option(help="Architecture, nequip if not given; `pimlip-zoo models` lists them.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Training structures: a file, builtin:NAME, ...; built-in ethanol if not given."),
    ] = None,
    valid: Annotated[str | None, typer.Option(help="Validation structures; else a part of --data.")] = None,
    test: Annotated[str | None, typer.Option(help="Evaluated at the end.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Fine-tune this run, or a model by name: 7net-0, builtin:organic-gfn2 (comes with the package). Its "
            "architecture and weights are the start.",
        ),
    ] = None,
    weak: Annotated[
        str | None, typer.Option(help="Weak supervision by name; `pimlip-zoo models --weak` lists them.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A run.yaml; single options win over it.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="small, medium or large; if not given, it follows the data.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="What fills in optimiser, schedule, losses: default, mace-torch, nequip."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/MODEL-k if not given.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any option: --set optimizer.lr=0.01")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out (or the newest).")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto (if not given), cpu, cuda, ...")] = None,
    devices: Annotated[
        int | None, typer.Option(help="Devices of each node; start with torchrun or srun.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and split; 0 if not given.")] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps; a pre-training on weak labels keeps its own (weak.labels.steps)."
        ),
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            help="90s, 10m, 2h, ...: the training ends then or at its last step, its rate decayed either way."
        ),
    ] = None,
    forces: Annotated[str | None, typer.Option(help="conservative (if not given) or direct.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="energy | energy,forces | energy,forces,stress; all that the data have if not given."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 (if not given) or float64.")] = None,
    unlabelled: Annotated[
        str | None, typer.Option(help="Structures without labels, for losses and weak labels.")
    ] = None,
    loggers: Annotated[
        str | None, typer.Option("--log", help="tensorboard, wandb, mlflow: one, or several with commas.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many validations without a better one.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Refuse what `data check` refuses; --no-check: train all the same."
        ),
    ] = True,
) -> None:
    """Train a potential and leave everything in a run folder."""
    _say_first()
    _look_first((data, valid, test, unlabelled), max_time)
    from pimlip_zoo.cli.import_ import run_of
    from pimlip_zoo.config import check_once, load_config, parse_settings
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.experiment import check_free, from_rank_zero, join_ranks

    given: list[tuple[str, Any]] = [
        ("model.name", model),
        ("model.preset", preset),
        ("recipe.name", recipe),
        ("data.train", data),
        ("data.valid", valid),
        ("data.test", test),
        ("trainer.device", device),
        ("trainer.devices", devices),
        ("trainer.nodes", nodes),
        ("seed", seed),
        ("trainer.max_steps", max_steps),
        ("trainer.max_time", max_time),
        ("model.force_head", forces),
        ("data.labels", labels.split(",") if labels is not None else None),
        ("trainer.dtype", dtype),
        ("weak.preset", weak),
        ("weak.unlabelled", unlabelled),
        ("finetune.run", run_of(start) if start is not None else None),
        ("data.check", None if check else False),
        ("trainer.loggers", loggers.split(",") if loggers is not None else None),
        ("trainer.patience", patience),
    ]
    options = [(key, value) for key, value in given if value is not None]
    options += [(key, _by_name(key, value)) for key, value in parse_settings(settings or [])]
    check_once(options)
    if resume and start is not None:
        raise InputError(
            "--from starts a run, --resume goes on with one", key="--resume", hint="give one of them"
        )
    if not resume:
        run_config = load_config(config, options)
        if out is not None:
            check_free(out)
        with ExitStack() as held:
            _run(run_config, lambda: _new_folder(out, run_config.model.name, held), join_ranks(run_config))
        return
    folder = out or _newest_run()
    if not (folder / "config.yaml").exists():
        raise InputError("there is no run to resume", file=folder, hint="it has no config.yaml")
    run_config = load_config(config, options, onto=folder / "config.yaml")
    rank = join_ranks(run_config)
    with ExitStack() as held:
        from_rank_zero(lambda: _take_up(folder, run_config, held))
        # A run that ended before its first checkpoint goes on from the start.
        _run(run_config, lambda: folder, rank, resumes=folder)


def _look_first(data: Sequence[str | None], max_time: str | None) -> None:
    """Refuse at once, before PyTorch is imported, files that are not there and a time that is none."""
    from pimlip_zoo.datasets.readers.spec import parse_spec
    from pimlip_zoo.written import parse_duration

    for spec in data:
        if spec is not None:
            parse_spec(spec)
    if max_time is not None:
        parse_duration(max_time)


def _say_first() -> None:
    """A line at once: PyTorch and Lightning take seconds to import, on a busy machine half a minute.

    Ranks are not connected yet; what starts them (torchrun, SLURM, Lightning) tells each by a variable which it is.
    """
    import os

    from pimlip_zoo import __version__
    from pimlip_zoo.cli.console import log_to_screen

    told = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
    log_to_screen(quiet=next(told, "0") != "0")
    logging.getLogger("pimlip_zoo").info("pimlip-zoo %s: loading PyTorch", __version__)


def _by_name(key: str, value: Any) -> Any:
    """A published model that gives weak labels may be named, as after --from."""
    from pimlip_zoo.cli.import_ import run_of

    named = key == "weak.labels.calculator" and isinstance(value, str) and value.startswith("run:")
    return f"run:{run_of(value.removeprefix('run:'))}" if named else value


def _run(config: Any, make: Callable[[], Path], rank: int, *, resumes: Path | None = None) -> None:
    """:func:`_train`; Ctrl-C outside of the training, while structures are read or labelled, ends it as well."""
    try:
        _train(config, make, rank, resumes=resumes)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _train(config: Any, make: Callable[[], Path], rank: int, *, resumes: Path | None = None) -> None:
    """Train.

    Args:
        config: of the run.
        make: makes its folder, once nothing can be refused any more.
        rank: of this process.
        resumes: the folder of the run that goes on.
    """
    from rich.panel import Panel

    from pimlip_zoo.cli.console import console, errors_table, log_to, say
    from pimlip_zoo.cli.report import read_metrics, write_run_report
    from pimlip_zoo.evaluation import check_labelled, evaluate_run, some_frames, tests_of
    from pimlip_zoo.experiment import (
        checked_structures,
        from_rank_zero,
        has_checkpoint,
        load_split,
        steps_done,
    )
    from pimlip_zoo.experiment.lost import check_open_files
    from pimlip_zoo.experiment.stages import prepare_run, train_run
    from pimlip_zoo.training.progress import duration, legend
    from pimlip_zoo.training.verdict import verdict_on

    check_open_files(config.data.num_workers)
    screen = console(quiet=rank > 0)  # one rank speaks, writes the log, evaluates and reports
    log = logging.getLogger("pimlip_zoo")
    log.setLevel(logging.ERROR if rank > 0 else logging.INFO)
    log.info("reading %s", config.data.train)
    split = load_split(config, checked_structures(config, tests_of(config)) if resumes is None else None)
    experiment = prepare_run(config, split=split, resumes=resumes)
    config, potential = experiment.config, experiment.potential
    _advise(config, experiment.frames if resumes is None else ())
    tests = tests_of(config)
    for spec in tests.values():
        check_labelled(potential, spec)
    folder = from_rank_zero(make)
    if rank == 0:
        log_to(folder)  # nothing is refused any more, and nothing was written before
    panel = Panel.fit(
        f"[bold]{config.model.name}[/bold] ({config.model.preset or 'own options'}), {_parameters(experiment)}, "
        f"cutoff {potential.cutoff:g} Å, {config.trainer.dtype}\n"
        f"species {', '.join(potential.species)}; energy references from {experiment.references.source}\n"
        f"training on {', '.join(experiment.labels)}; {_length(config)}\n"
        f"{_recipe_line(config)}\n"
        f"run folder [bold]{folder}[/bold]",
        title="pimlip-zoo train",
        title_align="left",
    )
    say(screen, panel)
    say(
        screen, legend(len(experiment.valid_frames), experiment.labels, averaged=config.trainer.ema_decay > 0)
    )
    last = resumes / "checkpoints" / "last.ckpt" if resumes is not None else None
    done = steps_done(last) if last is not None and last.exists() else 0
    if done >= config.trainer.max_steps:
        say(screen, f"the run is complete: nothing is trained (--max-steps above {done:,} goes on with it)")
    outcome = train_run(experiment, folder, resume=resumes is not None and has_checkpoint(folder))
    if outcome.signal is not None:
        say(
            screen,
            f"stopped after step {outcome.steps}; go on with: pimlip-zoo train --out {folder} --resume",
        )
        raise typer.Exit(128 + outcome.signal)
    if rank > 0:
        return
    kept = config.trainer.keep or "best"
    say(screen, f"{outcome.steps:,} steps in {duration(outcome.seconds)}; errors of the {kept} weights:")
    valid: dict[str, Sequence[Any]] = {"training": some_frames(experiment.frames)}
    if "validation" not in tests:
        valid["validation"] = experiment.valid_frames
    named = (experiment.baseline or {}).get("calculator")  # by the configuration: the training has called it
    errors = evaluate_run(folder, tests, valid, trusted=named)
    say(screen, errors_table(errors))
    if cut := _cut_short(config, outcome, done):
        say(screen, cut)
    for sentence in verdict_on(read_metrics(folder / "metrics.csv"), errors):
        say(screen, f"[bold]{sentence}[/bold]")
    say(screen, f"report: {write_run_report(folder)} (open it in a browser)")
    say(
        screen,
        f"next: pimlip-zoo eval {folder} --data DATA --plot parity.png\n"
        f"      pimlip-zoo md {folder} --structure FILE --ensemble nvt --temperature 300 --steps 10000\n"
        f"      pimlip-zoo report {folder} OTHER_RUN -o comparison.html",
    )


def _parameters(experiment: Any) -> str:
    """How many the potential has that the run leaves, and how many of them have a part in the training."""
    here, whole = experiment.potential, experiment.whole
    present, all_of_them = (
        sum(p.numel() for p in potential.model.parameters())
        for potential in (here, here if whole is None else whole.potential)
    )
    absent = "" if whole is None else f" ({present:,} without those of absent species)"
    return f"{all_of_them:,} parameters{absent}"


def _cut_short(config: Any, outcome: Any, before: int) -> str:
    """What ended the run before its last step; empty where nothing did.

    Args:
        config: of the run.
        outcome: of this part of it.
        before: steps of the parts before; ``outcome.seconds`` are those of this one.
    """
    planned = config.trainer.max_steps
    if outcome.steps >= planned:
        return ""
    from pimlip_zoo.training.progress import duration

    ends = {"--max-time": config.trainer.max_time, "--patience": config.trainer.patience}
    named = " or ".join(name for name, value in ends.items() if value is not None)
    if not named:
        return ""
    text = f"{named} ended the run at {outcome.steps:,} of {planned:,} steps"
    made = outcome.steps - before
    if made < _FEW_STEPS:
        return text
    return f"{text}, which take about {duration(outcome.seconds * planned / made)}"


def _advise(config: Any, frames: Sequence[Any]) -> None:
    """Say what would help a new run with these training structures, where something is known to."""
    if frames and (advice := _with_few_labels(config, frames)):
        logging.getLogger("pimlip_zoo").info("%s", advice)


def _with_few_labels(config: Any, frames: Sequence[Any]) -> str:
    """What helps where labels are few, of a run that uses nothing of it; empty where nothing is known.

    Args:
        config: of the run.
        frames: that are trained on.
    """
    weak = config.weak.preset is not None or config.weak.labels is not None or config.weak.terms
    if len(frames) > _FEW_LABELS or weak or config.finetune.run is not None:
        return ""
    from pimlip_zoo.training.shipped import start_for_molecules

    start = start_for_molecules(frames, config.model.name)
    if start is None or config.data.train.startswith("builtin:"):
        return ""
    return (
        f"few labels: force errors on other molecules were a third lower or better with --from {start}, which costs "
        f"nothing; what else may help, says: pimlip-zoo weak advise --data {config.data.train}"
    )


def _length(config: Any) -> str:
    steps, batch = config.trainer.max_steps, config.data.batch_size * config.trainer.accumulate
    text = f"{steps:,} steps of {batch} structures"
    labels = config.weak.labels
    before = 0 if labels is None else labels.recipe().steps_before()
    if before:
        text = f"{before:,} steps on weak labels, then {text}"
    if config.trainer.max_time is None:
        return text
    whole = " all together" if before else ""
    pool = (
        ""
        if labels is None
        else "\n(--max-time is that of the training: computing weak labels comes before it)"
    )
    return f"{text}, or {config.trainer.max_time}{whole} if that is sooner{pool}"


def _recipe_line(config: Any) -> str:
    optimizer, schedule = config.optimizer, config.schedule
    decay = {"constant": "", "plateau": " lowered on plateaus"}.get(
        schedule.name,
        f" decaying to {f'{schedule.final:g} of that' if schedule.final else 'zero'} ({schedule.name})",
    )
    return (
        f"recipe {config.recipe.name} {config.recipe.version}: {optimizer.name}, rate {optimizer.lr:g}{decay}; "
        f"weights averaged with {config.trainer.ema_decay:g}"
    )


def _new_folder(out: Path | None, model: str, held: ExitStack) -> Path:
    """The folder of a new run, claimed for this process until ``held`` is closed."""
    from pimlip_zoo.experiment import check_free
    from pimlip_zoo.locks import claimed, numbered_folder

    folder = held.enter_context(claimed(out or held.enter_context(numbered_folder(Path("runs"), model))))
    check_free(folder)  # another process may have been there since the first look
    return folder


def _take_up(folder: Path, config: RunConfig, held: ExitStack) -> None:
    """Claim the folder of a run until ``held`` is closed, and check that it can go on with this configuration."""
    from pimlip_zoo.experiment import check_settings
    from pimlip_zoo.locks import claimed

    held.enter_context(claimed(folder))
    check_settings(folder, config)


def _newest_run() -> Path:
    from pimlip_zoo.errors import InputError

    found = [
        (path.stat().st_mtime, folder)
        for folder in (path.parent for path in Path("runs").glob("*/config.yaml"))
        for path in (folder / "config.yaml", *folder.glob("**/checkpoints/last.ckpt"))
        if path.exists()
    ]
    if not found:
        raise InputError("there is no run to resume under runs/", key="--resume", hint="name it with --out")
    return max(found)[1]
