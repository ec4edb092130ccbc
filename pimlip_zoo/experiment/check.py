"""The audit of ``data check``, made before a training: within seconds, because of large sets a sample is looked at."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from pimlip_zoo.config import RunConfig
from pimlip_zoo.datasets.audit import Audit, audit_surveys, survey_sample
from pimlip_zoo.datasets.coverage import isolated_atom_energies
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.data import isolated_atoms, reference_frames, structures_of
from pimlip_zoo.experiment.ranks import from_rank_zero

log = logging.getLogger("pimlip_zoo")

ATOMS = 20_000
"""Atoms of a set that are looked at, about."""
_SHOWN = 6
_INSIST = "--no-check to train all the same"


def checked_structures(config: RunConfig, tests: Mapping[str, str]) -> Sequence[Frame]:
    """Read the structures of ``data.train``; refuse what ``data check`` refuses, in its words; say what it warns of.

    Built-in sets are not looked at: they have been.

    Args:
        config: of the run.
        tests: DATA specifications of what is evaluated at the end, by name.

    Returns:
        All of them, before any are held out for validation.

    Raises:
        InputError: for what makes no sense to train on, unless ``data.check`` is false.
    """
    structures = structures_of(config.data.train, config.data)
    from_rank_zero(lambda: _check(config, structures, tests))
    return structures


def _check(config: RunConfig, structures: Sequence[Frame], tests: Mapping[str, str]) -> None:
    data = config.data
    specs = {"train": data.train}
    if data.valid is not None:
        specs["valid"] = data.valid
    others = [spec for spec in tests.values() if spec != data.valid]
    specs.update(
        {"test" if len(others) == 1 else f"test {k}": spec for k, spec in enumerate(others, start=1)}
    )
    if all(spec.startswith("builtin:") for spec in specs.values()):
        return
    if not data.check:
        log.warning("the structures were not checked (--no-check)")
        return
    found = _look(config, structures, specs)
    warned = [finding for finding in found.findings if finding.severity == "warning"]
    for finding in warned[:_SHOWN]:
        log.warning(
            "%s: %s%s", specs[finding.data], finding.message, f" ({finding.hint})" if finding.hint else ""
        )
    refused = [finding for finding in found.findings if finding.severity == "refused"]
    if refused:
        first, *more = refused
        further = f"; and {len(more)} more, see `pimlip-zoo data check`" if more else ""
        raise InputError(
            f"{first.message}{further}",
            file=specs[first.data],
            frame=first.frames[0] if first.frames else None,
            hint=f"{first.hint}; {_INSIST}" if first.hint else _INSIST,
        )
    sampled = [survey for survey in found.surveys if survey.places is not None]
    some = "".join(f"; {survey.name}: {len(survey):,} of {survey.total:,} structures" for survey in sampled)
    if warned:
        log.info("checked: warnings, see `pimlip-zoo data check`; nothing that forbids training%s", some)
    else:
        log.info("checked: nothing speaks against training on these data%s", some)


def _look(config: RunConfig, structures: Sequence[Frame], specs: Mapping[str, str]) -> Audit:
    single = [structures[i] for i in isolated_atoms(structures)]
    references = config.data.energy_references
    given = references if isinstance(references, dict) else {}
    energies = {**isolated_atom_energies([*reference_frames(config.data), *single]), **given}
    surveys = [
        survey_sample(name, structures if name == "train" else load_frames(spec), atoms=ATOMS)
        for name, spec in specs.items()
    ]
    labels = () if config.data.labels == "auto" else config.data.labels
    return audit_surveys(surveys, labels=labels, atom_energies=energies)
