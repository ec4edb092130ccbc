"""What users call from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from pimlip_zoo.models.potential import Potential


def load(run: str | Path, **options: Any) -> Potential:
    """The trained potential of a run folder or checkpoint.

    Args:
        run: run folder or checkpoint.
        options: of :func:`pimlip_zoo.training.checkpoint.load_potential`: dtype, which, and level, of a run on several
            levels of theory.
    """
    from pimlip_zoo.training.checkpoint import load_potential

    return load_potential(run, **options)


def checkpoint_file(run: str | Path) -> Path:
    """The file with the weights of a run: of a folder those that validated best, or its last ones.

    Args:
        run: run folder, checkpoint, or ``builtin:NAME``, a potential that comes with the package.

    Raises:
        InputError: when there is none.
    """
    from pimlip_zoo.training.checkpoint import checkpoint_path

    return checkpoint_path(run)


def train(
    settings: Mapping[str, Any], *, out: str | Path, config: str | Path | None = None, resume: bool = False
) -> Potential:
    """Train a potential from Python; the run folder is that of ``pimlip-zoo train``.

    Progress goes to the logger ``pimlip_zoo``, of which Python shows warnings alone:
    ``logging.basicConfig(level="INFO")`` shows all of it.

    >>> import tempfile
    >>> short = {"data.train": "builtin:ethanol-gfn2@:20", "trainer.max_steps": 2, "model.channels": 8}
    >>> potential = train(short, out=tempfile.mkdtemp() + "/run")
    >>> potential.species
    ('H', 'C', 'O')

    Args:
        settings: options by dotted key, as after ``--set``: ``{"data.train": "few.extxyz", "weak.preset": "gfn2"}``.
            What is not among them comes from the recipe and from the data.
        out: the run folder.
        config: a configuration file; settings win over it.
        resume: go on with the run in ``out``; without, a folder that holds a run is refused.

    Returns:
        The potential with the best weights, those that :func:`load` gives.

    Raises:
        InputError: for data or options that cannot be used, as on the command line; nothing is written then.
        KeyboardInterrupt: after a signal ended the training; it can be resumed.
    """
    from contextlib import ExitStack

    from pimlip_zoo.config import load_config
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.evaluation import tests_of
    from pimlip_zoo.experiment import (
        check_free,
        check_settings,
        checked_structures,
        has_checkpoint,
        load_split,
    )
    from pimlip_zoo.experiment.stages import prepare_run, train_run
    from pimlip_zoo.locks import claimed

    given = _checked_settings(settings)
    folder = Path(out)
    file = None if config is None else Path(config)
    onto = folder / "config.yaml"
    if not resume:
        check_free(folder)
    elif not onto.exists():
        raise InputError("there is no run to resume", file=folder, hint="it has no config.yaml")
    run_config = load_config(file, list(given.items()), onto=onto if resume else None)
    with ExitStack() as held:
        if resume:
            held.enter_context(claimed(folder))
            check_settings(folder, run_config)
        split = load_split(
            run_config, None if resume else checked_structures(run_config, tests_of(run_config))
        )
        experiment = prepare_run(run_config, split=split, resumes=folder if resume else None)
        if not resume:
            held.enter_context(claimed(folder))
            check_free(folder)  # another process may have been there since the first look
        outcome = train_run(experiment, folder, resume=resume and has_checkpoint(folder))
    if outcome.signal is not None:
        raise KeyboardInterrupt(f"stopped after step {outcome.steps}; resume=True goes on")
    return load(folder)


def _checked_settings(settings: Any) -> dict[str, Any]:
    """Options by dotted key; paths among the values become text."""
    from pimlip_zoo.errors import InputError

    if not isinstance(settings, Mapping):
        raise InputError(
            f"settings are a mapping of options, not {settings!r}",
            key="settings",
            hint='write {"data.train": "few.extxyz"}; a configuration file goes to config=',
        )
    for key in settings:
        if not isinstance(key, str):
            raise InputError(
                f"options have names, {key!r} is none", key="settings", hint='such as "data.train"'
            )
    return {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in settings.items()
    }


def calculator(
    *runs: str | Path,
    device: str = "cpu",
    skin: float = 0.5,
    trust: bool = False,
    charge: int | None = None,
    multiplicity: int | None = None,
    uncertainty: bool = False,
    level: str | None = None,
    **options: Any,
) -> Calculator:
    """An ASE calculator of a run folder, checkpoint or native model; of several, their mean with its spread.

    A run that learnt the difference to a cheap calculator is added to that calculator. Run folders and checkpoints are
    read as data. A native model is a program: it is compiled and run with your rights, so load only those of people
    whom you trust.

    Args:
        runs: run folders, checkpoints, files of ``export --format native``.
        device: where to compute; native models compute on the CPU.
        skin: Å, see :class:`~pimlip_zoo.deploy.ase.PimlipCalculator`.
        trust: call the function that a run names as its cheap calculator; not needed for gfn2, gfn1 and emt.
        charge: of all structures, where the model embeds it; None: each states its own, or is neutral.
        multiplicity: likewise, 2S + 1.
        uncertainty: ``results["energy_uncertainty"]`` and ``["forces_uncertainty"]`` with every evaluation, of one run
            that stands alone, on the CPU; the posterior is fitted to the run's data when it is first asked for. Of a
            native model that was exported with it, ``results["forces_uncertainty"]`` alone.
        level: of a run on several levels of theory; None: that of the reference labels.
        options: of :func:`load`.

    Raises:
        InputError: for what is no run, or a device that cannot be used.
    """
    from pimlip_zoo.deploy.native.archive import SUFFIX

    _check_runs(runs)
    if level is not None:
        options["level"] = level
    electrons = {
        key: value for key, value in (("charge", charge), ("multiplicity", multiplicity)) if value is not None
    }
    native = len(runs) == 1 and str(runs[0]).endswith(SUFFIX)
    if uncertainty and not native:
        return _uncertain(runs, device=device, skin=skin, electrons=electrons, trust=trust, options=options)
    if native:  # needs no torch, and imports none
        given = {**options, **electrons}
        return _native(runs[0], device=device, skin=skin, options=given, uncertainty=uncertainty)
    from pimlip_zoo.deploy.ase import PimlipCalculator, check_device
    from pimlip_zoo.deploy.difference import with_baseline
    from pimlip_zoo.training.checkpoint import baseline_of, check_members, check_weights_differ

    check_device(device)
    check_members(runs)
    members = [
        _native(run, device=device, skin=skin, options={**options, **electrons})
        if str(run).endswith(SUFFIX)
        else PimlipCalculator(load(run, difference=True, **options), device=device, skin=skin, **electrons)
        for run in runs
    ]
    baselines = {None if str(run).endswith(SUFFIX) else baseline_of(run) for run in runs}
    _check_electrons(electrons, baselines)
    if len(members) == 1:
        return with_baseline(members[0], baselines, trust=trust)
    from pimlip_zoo.deploy.committee import CommitteeCalculator

    committee = with_baseline(CommitteeCalculator(members), baselines, trust=trust)
    loaded = zip(runs, members, strict=True)
    potentials = {run: member.potential for run, member in loaded if isinstance(member, PimlipCalculator)}
    check_weights_differ(potentials)
    _check_exports_differ(runs, potentials)
    return committee


def _check_exports_differ(runs: tuple[str | Path, ...], potentials: Mapping[str | Path, Potential]) -> None:
    """Refuse a native model beside the run that it was exported from, or beside another export of it."""
    from pimlip_zoo.deploy.metadata import hashes_of_exports, read_metadata
    from pimlip_zoo.training.checkpoint import equal_members

    exported = [run for run in runs if run not in potentials]
    known = [(run, hashes_of_exports(potential)) for run, potential in potentials.items() if exported]
    for run in exported:
        own = read_metadata(run)["weights_sha256"]
        for other, hashes in known:
            if own in hashes:
                raise equal_members(run, other)
        known.append((run, {own}))


def _check_runs(runs: tuple[Any, ...]) -> None:
    from pimlip_zoo.errors import InputError

    if not runs:
        raise InputError("of which run?", key="runs", hint='write calculator("runs/nequip-1")')
    for run in runs:
        if not isinstance(run, (str, os.PathLike)):
            raise InputError(
                f"a run is named by its folder, not by {type(run).__name__}",
                key="runs",
                hint='several runs are several arguments: calculator("runs/a", "runs/b")',
            )


def _uncertain(
    runs: tuple[str | Path, ...],
    *,
    device: str,
    skin: float,
    electrons: dict[str, Any],
    trust: bool,
    options: dict[str, Any],
) -> Calculator:
    from pimlip_zoo.deploy.difference import with_baseline
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.labelling.calculator import UncertainCalculator
    from pimlip_zoo.run_posterior import posterior_of
    from pimlip_zoo.training.checkpoint import baseline_of

    if len(runs) != 1 or device != "cpu":
        raise InputError(
            "the uncertainty is that of one run or checkpoint, on the CPU",
            key="uncertainty",
            hint="several runs are a committee, whose spread is in energy_std and forces_std",
        )
    if options.get("level") is not None:
        raise InputError(
            "the uncertainty is that of the reference level", key="level", hint="leave out one of the two"
        )
    baseline = baseline_of(runs[0])
    _check_electrons(electrons, {baseline})
    potential = load(runs[0], difference=True, **options)
    posterior = posterior_of(runs[0], trust=trust)
    return with_baseline(
        UncertainCalculator(potential, posterior, skin=skin, **electrons), {baseline}, trust=trust
    )


def _check_electrons(electrons: Mapping[str, Any], baselines: set[str | None]) -> None:
    from pimlip_zoo.errors import InputError

    if electrons and baselines != {None}:
        raise InputError(
            "the run is a correction to a cheap calculator, which has to know it, too",
            key=min(electrons),
            hint="state it in atoms.info instead",
        )


def _native(
    path: str | Path, *, device: str, skin: float, options: dict[str, Any], uncertainty: bool = False
) -> Calculator:
    from pimlip_zoo.deploy.native.calculator import NativeCalculator
    from pimlip_zoo.errors import InputError

    if device not in ("cpu", "auto"):
        raise InputError(
            f"a native model computes on the CPU, not on {device}",
            file=path,
            hint="use the run, or --format aot",
        )
    if options:
        raise InputError(
            f"a native model has no option {min(options)}", file=path, hint="export it as it should be"
        )
    return NativeCalculator(path, skin=skin, uncertainty=uncertainty)
