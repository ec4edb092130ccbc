"""The audit of a data set before the first step: what would spoil a training, found in a minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pimlip_zoo.datasets.audit.consistency import TRUSTED, check_consistency
from pimlip_zoo.datasets.audit.finding import Finding
from pimlip_zoo.datasets.audit.geometry import check_duplicates, check_geometry, check_leakage
from pimlip_zoo.datasets.audit.labels import check_coverage, check_energies, check_forces, check_stress
from pimlip_zoo.datasets.audit.magnitudes import check_magnitudes, close_agreement
from pimlip_zoo.datasets.audit.survey import Survey, survey_frames, survey_sample
from pimlip_zoo.datasets.coverage import isolated_atom_energies
from pimlip_zoo.datasets.readers import read_frames
from pimlip_zoo.errors import InputError

__all__ = [
    "Audit",
    "Finding",
    "Survey",
    "audit",
    "audit_surveys",
    "survey_data",
    "survey_frames",
    "survey_sample",
]

_ORDER = {"refused": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Audit:
    """What was found in one or several splits."""

    surveys: tuple[Survey, ...]
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Whether training on the data makes no sense."""
        return any(finding.severity == "refused" for finding in self.findings)

    def codes(self) -> set[str]:
        """The short names of what was found."""
        return {finding.code for finding in self.findings}


def audit(
    splits: Mapping[str, str],
    *,
    labels: Sequence[str] = (),
    cutoff: float = 5.0,
    atom_energies: Mapping[str, float] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Audit:
    """Read and audit splits of data.

    Args:
        splits: DATA specifications by the name of the split.
        labels: those that training is to use; a missing one is refused.
        cutoff: Å, of the model that is to be trained.
        atom_energies: eV by chemical symbol; isolated atoms in the data are found.
        progress: called with a split and the number of frames read.

    Raises:
        InputError: for a file that is missing or unreadable as a whole.
    """
    surveys, energies = [], dict(atom_energies or {})
    for name, spec in splits.items():
        survey = survey_data(name, spec, cutoff=cutoff, progress=progress)
        surveys.append(survey)
        for symbol, energy in isolated_atom_energies(survey.sample.values()).items():
            energies.setdefault(symbol, energy)
    return audit_surveys(surveys, labels=labels, cutoff=cutoff, atom_energies=energies)


def survey_data(
    name: str, spec: str, *, cutoff: float = 5.0, progress: Callable[[str, int], None] | None = None
) -> Survey:
    """Go through the frames of a DATA specification once."""
    bad: list[InputError] = []

    def report(done: int) -> None:
        if progress:
            progress(name, done)

    survey = survey_frames(name, read_frames(spec, on_bad=bad.append), cutoff=cutoff, progress=report)
    return replace(survey, bad=tuple(bad))


def audit_surveys(
    surveys: Sequence[Survey],
    *,
    labels: Sequence[str] = (),
    cutoff: float = 5.0,
    atom_energies: Mapping[str, float] | None = None,
) -> Audit:
    """All checks, the gravest findings first."""
    findings: list[Finding] = []
    for survey in surveys:
        first = len(findings)
        findings += check_coverage(survey, labels)
        if not len(survey):
            continue
        findings += check_energies(survey, atom_energies)
        findings += check_forces(survey)
        findings += check_stress(survey)
        findings += _compare(survey)
        findings += check_geometry(survey, cutoff)
        findings += check_duplicates(survey)
        findings[first:] = [survey.numbered(finding) for finding in findings[first:]]
    findings += check_leakage(surveys)
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    return Audit(tuple(surveys), tuple(findings))


def _compare(survey: Survey) -> list[Finding]:
    """Forces and stress against energies: by pairs of near structures, and by sizes where pairs leave doubts."""
    pairs = list(check_consistency(survey))
    of_forces = [finding for finding in pairs if not finding.code.startswith("stress")]
    if any(finding.severity != "note" for finding in of_forces):
        # Pairs accuse wrongly where forces bend strongly between them: the work is then not what the ends say.
        agreed = close_agreement(survey)
        if agreed is not None:
            rest = [finding for finding in pairs if finding not in of_forces]
            return [agreed, *rest, *check_magnitudes(survey, compared=True)]
    certain = any(finding.values.get("explained", 0.0) >= TRUSTED for finding in of_forces)
    if certain and any(finding.severity == "refused" for finding in of_forces):
        return pairs
    doubtful = not certain or any(finding.code == "force-inconsistent" for finding in of_forces)
    sizes = list(check_magnitudes(survey, compared=not doubtful))
    if any(finding.code.startswith("stress") for finding in pairs):
        sizes = [finding for finding in sizes if finding.code != "stress-sign"]
    stronger = {"force-unit", "force-sign"} if certain else {"force-unit", "force-sign", "force-agrees"}
    if any(finding.code in stronger for finding in sizes):
        pairs = [finding for finding in pairs if finding not in of_forces]  # what they say is the weaker word
    elif certain:
        sizes = [finding for finding in sizes if finding.code != "force-agrees"]
    return pairs + sizes
