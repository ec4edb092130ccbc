"""Findings about labels: coverage, outliers, references, net forces, sizes of stress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pimlip_zoo.datasets.audit.finding import Finding, counted, frames_of
from pimlip_zoo.datasets.audit.references import fit_atom_energies
from pimlip_zoo.datasets.audit.survey import Survey
from pimlip_zoo.datasets.lmdb.record import ENERGY, FORCES, STRESS
from pimlip_zoo.errors import plain_number

_MASKS = {"energy": ENERGY, "forces": FORCES, "stress": STRESS}
_FAR = 12.0
"""Robust standard deviations beyond which a value is an outlier."""
_MAX_REFERENCE = 50.0
"""eV per atom that energies may be away from the sum of atomic energies."""
_STRONGEST_BINDING = 15.0
"""eV per atom; that of tungsten, the strongest, is 9."""
_HUGE_FORCE = 100.0
_LARGE_STRESS = 0.5
_IMPOSSIBLE_STRESS = 3.0


def check_coverage(survey: Survey, labels: Sequence[str]) -> Iterator[Finding]:
    """Frames that cannot be used, and labels that are missing.

    Args:
        survey: of the set.
        labels: those that training is to use; empty where nobody said.
    """
    if survey.bad:
        places = [error.frame for error in survey.bad if error.frame is not None]
        yield Finding(
            "unusable",
            "refused",
            f"{counted(len(survey.bad), 'structure', 'structures')} cannot be used; the first: {survey.bad[0]}",
            survey.name,
            len(survey.bad),
            tuple(places[:20]),
            "mend them, or convert with --skip-bad",
        )
    if not len(survey):
        return
    have = {name: (survey.facts["labels"] & mask) > 0 for name, mask in _MASKS.items()}
    have["forces"] &= survey.facts["force_atoms"] > 0
    if not any(present.any() for present in have.values()):
        yield Finding(
            "no-labels",
            "refused",
            "no structure has energy, forces or stress",
            survey.name,
            len(survey),
            hint="name the keys: ?energy_key=...&forces_key=...",
        )
        return
    for name, present in have.items():
        absent = ~present
        if name == "stress":
            absent &= survey.facts["periodic"] > 0
        if not present.any():
            if name in labels or (name == "energy" and not labels):
                yield Finding(
                    f"missing-{name}",
                    "refused",
                    f"no structure has {name}",
                    survey.name,
                    len(survey),
                    hint=f"name the key with ?{name}_key=..., or train on other labels with --labels",
                )
        elif absent.any():
            single = survey.facts["natoms"] == 1
            if name == "forces" and not (absent & ~single).any():
                continue  # forces of single atoms are zero, nobody writes them
            yield Finding(
                f"partial-{name}",
                "warning",
                f"{int(absent.sum())} of {len(survey)} structures have no {name}",
                survey.name,
                **frames_of(absent),
            )


def check_energies(survey: Survey, atom_energies: Mapping[str, float] | None) -> Iterator[Finding]:
    """Outliers against fitted references, and references that do not belong to the energies."""
    facts = survey.facts
    fit = fit_atom_energies(survey.compositions, facts["composition"], facts["energy"])
    known = np.isfinite(fit.residual)
    if not known.any():
        return
    if not fit.determined:
        yield Finding(
            "references-undetermined",
            "note",
            f"compositions determine {fit.rank} of {len(fit.energies)} atomic energies: "
            "a fit cannot tell them apart",
            survey.name,
            hint="give energies of isolated atoms, if the potential is to be used for other compositions",
            values={"rank": fit.rank, "elements": len(fit.energies)},
        )
    bulk = known & (facts["natoms"] > 1)
    limit = max(_FAR * _spread(fit.residual[bulk]), 0.1) if bulk.any() else np.inf
    centre = float(np.median(fit.residual[bulk])) if bulk.any() else 0.0
    far = bulk & (np.abs(np.where(known, fit.residual, centre) - centre) > limit)
    if far.any():
        worst = float(np.nanmax(np.abs(fit.residual[far] - centre)))
        yield Finding(
            "energy-outliers",
            "warning",
            f"{int(far.sum())} energies are more than {plain_number(limit)} eV/atom away from the others, "
            f"up to {plain_number(worst)}",
            survey.name,
            **frames_of(far),
            values={"limit": limit, "worst": worst},
        )
    if atom_energies:
        yield from _check_references(survey, atom_energies)


def _check_references(survey: Survey, atom_energies: Mapping[str, float]) -> Iterator[Finding]:
    from ase.data import atomic_numbers, chemical_symbols

    present = np.flatnonzero(survey.compositions.any(axis=0))
    unknown = [chemical_symbols[z] for z in present if chemical_symbols[z] not in atom_energies]
    if unknown:
        yield Finding(
            "references-missing",
            "warning",
            f"no energy of an isolated {', '.join(unknown)} is given",
            survey.name,
        )
        return
    table = np.zeros(119)
    for symbol, energy in atom_energies.items():
        table[atomic_numbers[symbol]] = energy
    facts = survey.facts
    away = (facts["energy"] - (survey.compositions @ table)[facts["composition"]]) / facts["natoms"]
    typical = float(np.nanmedian(away[facts["natoms"] > 1])) if (facts["natoms"] > 1).any() else 0.0
    if _STRONGEST_BINDING < abs(typical) < _MAX_REFERENCE:
        yield Finding(
            "references-wrong",
            "refused",
            f"energies are typically {plain_number(typical)} eV/atom away from the sum of the energies of isolated "
            "atoms; the "
            "strongest bonds are 9",
            survey.name,
            count=len(survey),
            hint="both must come from the same method and have the same unit",
            values={"typical": typical},
        )
    far = np.abs(away) > _MAX_REFERENCE
    if far.any():
        yield Finding(
            "references-wrong",
            "refused",
            f"{int(far.sum())} energies are more than {_MAX_REFERENCE:.0f} eV/atom away from the sum of the "
            f"energies of isolated atoms, up to {plain_number(float(np.nanmax(np.abs(away))), 4)}",
            survey.name,
            **frames_of(far),
            hint="both must come from the same method and have the same unit",
        )


def check_forces(survey: Survey) -> Iterator[Finding]:
    """Outliers, forces that are all zero, forces that do not add up to zero."""
    facts = survey.facts
    largest = facts["force_max"]
    labelled = np.isfinite(largest) & (facts["natoms"] > 1)
    if not labelled.any():
        return
    typical = float(np.median(largest[labelled]))
    limit = max(20.0 * typical, 30.0) if typical else _HUGE_FORCE
    far = labelled & (np.where(labelled, largest, 0.0) > min(limit, max(_HUGE_FORCE, 5 * typical)))
    if far.any():
        yield Finding(
            "force-outliers",
            "warning",
            f"{counted(int(far.sum()), 'structure has', 'structures have')} "
            f"forces up to {plain_number(float(largest[far].max()), 4)} eV/Å, "
            f"the median of the largest is {plain_number(typical)}",
            survey.name,
            **frames_of(far),
            hint="leave them out, or train with the Huber loss",
            values={"typical": typical},
        )
    zero = labelled & (largest == 0.0)
    if zero.sum() > 0.5 * labelled.sum() and labelled.sum() > 1:
        yield Finding(
            "forces-zero",
            "warning",
            f"all forces of {counted(int(zero.sum()), 'structure', 'structures')} are exactly zero",
            survey.name,
            **frames_of(zero),
            hint="zero is a label: leave forces out where they were not computed",
        )
    rms = np.sqrt(facts["force_square"] / np.maximum(facts["force_atoms"], 1))
    net = np.isfinite(facts["force_net"]) & labelled
    scale = np.sqrt(facts["natoms"]) * np.maximum(rms, 1e-3)
    share = np.where(net, facts["force_net"], 0.0) / scale
    large = net & (share > 0.1) & (facts["force_net"] > 0.05)
    if large.any():
        yield Finding(
            "net-forces",
            "warning",
            f"the forces of {counted(int(large.sum()), 'structure', 'structures')} do not add up to zero, up to "
            f"{plain_number(float(facts['force_net'][large].max()))} eV/Å",
            survey.name,
            **frames_of(large),
            hint="external fields, fixed atoms or coarse grids do this; a potential cannot learn it",
        )


def check_stress(survey: Survey) -> Iterator[Finding]:
    """Stress of a size that points to another unit."""
    size = survey.facts["stress_max"]
    known = np.isfinite(size)
    if not known.any():
        return
    typical = float(np.median(size[known]))
    if typical > _LARGE_STRESS:
        yield Finding(
            "stress-unit",
            "refused" if typical > _IMPOSSIBLE_STRESS else "warning",
            f"stress is typically {plain_number(typical)} eV/Å³, that is {plain_number(160.2177 * typical, 4)} GPa: "
            "it looks like GPa or kbar",
            survey.name,
            **frames_of(known),
            hint="name its unit: ?stress=GPa or ?stress=kbar",
            values={"typical": typical},
        )


def _spread(values: NDArray[np.float64]) -> float:
    """The standard deviation that the median of absolute deviations points to."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
