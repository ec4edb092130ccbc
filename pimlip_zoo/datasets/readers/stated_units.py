"""Units that the header of an extended XYZ file states, compared with those that its numbers are taken for.

Units of energies, lengths, forces and stress have to be known and the same. Those of other quantities, such as dipoles,
polarizabilities and times, are nobody's business here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from pimlip_zoo.datasets.readers.labels import LabelFinder
from pimlip_zoo.datasets.readers.units import energy_unit, forces_unit, length_unit, stress_unit
from pimlip_zoo.errors import InputError

_OF = r"(?:ref|reference|dft|qm|scf|calc|total|tot|potential|pot|free|system|atomic)*"
_KIND = {
    "energy": re.compile(rf"{_OF}(?:energy|energies|e|virials?)"),
    "length": re.compile(
        rf"{_OF}(?:lengths?|distances?|pos|positions?|coords?|coordinates?|(?:unit|super)?cell|lattice|box|r|xyz)"
    ),
    "forces": re.compile(rf"{_OF}(?:forces?|grad|gradients?)"),
    "stress": re.compile(rf"{_OF}(?:stress(?:es)?|stresstensor|pressures?)"),
}
"""What units may be of, by the letters of its name."""
_ALL = re.compile(rf"{_OF}(?:system|style|set|convention|lammps|ase|all|labels?)?")
"""Names of which the units are those of everything."""
_BEFORE, _IN = re.compile(r"([a-z]*?)units?"), re.compile(r"([a-z]+)in")
_BEHIND = (re.compile(r"units?(?:of|for)([a-z]+)"), re.compile(r"units([a-z]+)"), re.compile(r"unit([a-z]+)"))
_NO_UNIT_OF = ("cell", "box", "lattice")
"""A unit_cell is a cell."""
_IN_BRACES = re.compile(r"(?<![\w=])(\w+)\{(\w+)\}")
"""As i-PI has it: positions{angstrom}."""
_PAIR = re.compile(r"([A-Za-z_]+)\s*[:=]\s*((?:(?!\s+[A-Za-z_]+\s*[:=])[^,;])+)")
_STYLES = ("electron", "si", "cgs", "au", "atomic", "atomic_unit", "atomic_units", "micro", "nano", "lj")
_ENERGY_STYLES = ("real",)
"""Sets of units, the last with lengths in Å."""
_OTHERS = re.compile(r"(?:[kmµu]?(?:j|joules?|cal|ha|eh|hartree|ry|rydberg)|kev|erg|wavenumbers?|)(?:/.*)?")
"""Energies that have no name here, whatever they are of; /cm is one."""
_FINDERS: Mapping[str, Callable[[str], float]] = {
    "energy": energy_unit,
    "length": length_unit,
    "forces": forces_unit,
    "stress": stress_unit,
}
_SPELLED = (
    (r"[\"'\[\](){}<>]", " "),
    (r"electron[\s_-]*volts?\b", "ev"),
    (r"[aå]ngstr(?:o|ö|oe)ms?\b|\bangs\b", "å"),
    (r"\b(mol)es?\b|\b(hartree|bohr|rydberg)s\b", r"\1\2"),
    (r"\s+per\s+|_per_|\s*/\s*", "/"),
    (r"\*\*", "^"),
    (r"[\s*·.]*\b([a-zå]+)\^?-([1-9])", r"/\1^\2"),
    (r"\^1\b", ""),
    (r"/(?:unit\s*)?(?:cell|structure|frame|configuration|molecule|system)\b", ""),
)
"""Other ways to write the same unit."""


def check_units(
    info: Mapping[str, Any], finder: LabelFinder, *, comment: str = "", lengths_only: bool = False
) -> None:
    """Refuse units that are not those which the numbers are taken for.

    Args:
        info: what a header says, by its keys.
        finder: what the numbers are taken for.
        comment: the header.
        lengths_only: of a structure whose labels are not read.

    Raises:
        InputError: naming the key.
    """
    stated = [(of, key) for key in info if (of := _quantity(key)) is not None]
    braces = _IN_BRACES.findall(comment) if "{" in comment else []
    if not stated and not braces:
        return
    check = _Check(finder, has_stress=_has_stress(info, finder), lengths_only=lengths_only)
    others = {_letters(key) for key in info if key != "free_energy" and not finder.is_label(key)}
    for of, key in stated:
        text = _text(info[key])
        if text is not None and (not of or of not in others):
            for word in check.differing(of, text):
                raise check.refusal(key, f"{key}={text.strip()[:80]}", word)
    for key, value in braces:
        for word in check.differing(_letters(key), value):
            raise check.refusal(key, f"{key}{{{value}}}", word)


class _Check:
    """What the units of a header are compared with."""

    def __init__(self, finder: LabelFinder, *, has_stress: bool, lengths_only: bool) -> None:
        self.finder, self.has_stress, self.lengths_only = finder, has_stress, lengths_only
        options = finder.options
        self.named = bool(options.energy or options.forces or options.length)

    def differing(self, of: str, text: str) -> Iterator[str]:
        """The words of a text that are no units of this quantity, or others than ours."""
        kind = next((kind for kind, names in _KIND.items() if names.fullmatch(of)), None)
        if kind is not None:
            word = _spelled(text)
            said = _unit(kind, word)
            named = bool(getattr(self.finder.options, kind)) or (self.named and kind != "stress")
            if self._differs(kind, said) if said is not None else self._counts(kind) and not named:
                yield word
        elif _ALL.fullmatch(of):
            pairs = _PAIR.findall(re.sub(r"[\"'\[\](){}<>]", " ", text))
            for name, value in pairs:
                yield from self.differing(_letters(name), value)
            yield from () if pairs else filter(self._is_other, re.split(r"[\s,;|&]+", _spelled(text)))

    def refusal(self, key: str, said: str, word: str) -> InputError:
        """The error that names the key."""
        message = f"the header says {said}, and it is taken for something else"
        if self.lengths_only:
            return InputError(message, key=key, hint="lengths have to be in Å; leave the key out if they are")
        hint = f"name units as in {self.finder.file}?energy=kcal/mol&length=Å, or leave the key out"
        if word and _unit("stress", word) is not None:
            hint = f"name its unit as in {self.finder.file}?stress=GPa, or leave the key out"
        return InputError(message, key=key, hint=hint)

    def _counts(self, kind: str) -> bool:
        """Whether anything is read that has this unit."""
        return kind == "length" or not (self.lengths_only or (kind == "stress" and not self.has_stress))

    def _differs(self, kind: str, said: float) -> bool:
        if not self._counts(kind):
            return False
        ours = getattr(self.finder, f"{kind}_unit")
        return not np.isclose(said, ours, rtol=1e-6, atol=0.0)

    def _is_other(self, word: str) -> bool:
        """Whether a word of the units of everything is not ours; a word that says nothing of them is passed over."""
        for kind in _FINDERS:
            said = _unit(kind, word)
            if said is not None:
                return self._differs(kind, said)
        if self.named or not word:
            return False
        other = word in _ENERGY_STYLES or _OTHERS.fullmatch(word) is not None
        return word.replace(".", "") in _STYLES or (other and not self.lengths_only)


def _has_stress(info: Mapping[str, Any], finder: LabelFinder) -> bool:
    named = finder.options.stress_key
    return any(key == named or (finder.is_label(key) and "stress" in key.lower()) for key in info)


def _letters(key: str) -> str:
    return re.sub(r"[^a-z]", "", key.lower())


@lru_cache(maxsize=256)
def _quantity(key: str) -> str | None:
    """What a key says the unit of, by the letters of its name, empty where it is everything; None for other keys."""
    letters = _letters(key)
    if (found := _BEFORE.fullmatch(letters)) is not None:
        return found[1]
    for pattern in (_IN, *_BEHIND):
        found = pattern.fullmatch(letters)
        if (
            found is not None
            and found[1] not in _NO_UNIT_OF
            and _is_known(found[1], every=pattern is not _IN)
        ):
            return found[1]
    return None


def _is_known(of: str, *, every: bool) -> bool:
    return any(names.fullmatch(of) for names in _KIND.values()) or (every and _ALL.fullmatch(of) is not None)


def _text(value: Any) -> str | None:
    """A text, or the texts of a list as one; None for numbers and truth values."""
    if not isinstance(value, str):
        parts = np.ravel(np.asarray(value, dtype=object)).tolist()
        value = " ".join(parts) if parts and all(isinstance(part, str) for part in parts) else ""
    return value if any(letter.isalpha() for letter in value) else None


@lru_cache(maxsize=256)
def _spelled(text: str) -> str:
    """Units in the way in which this package writes them, in small letters."""
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").casefold()
    for pattern, replacement in _SPELLED:
        text = re.sub(pattern, replacement, text)
    return text.strip(" ,;.")


@lru_cache(maxsize=256)
def _unit(kind: str, word: str) -> float | None:
    """How many eV, Å, eV/Å or eV/Å³ it is; None for what is no unit of this kind."""
    with suppress(InputError):
        return _FINDERS[kind](word)
    return None
