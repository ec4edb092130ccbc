"""Numbers and times as people write and read them."""

from __future__ import annotations

import datetime
import re

from pimlip_zoo.errors import InputError


def milli(value: float) -> str:
    """A value in thousandths of its unit: two decimals, and two digits where that would leave less.

    >>> milli(0.01234), milli(0.0000123), milli(0.0)
    ('12.34', '0.012', '0.00')
    """
    thousandths = 1e3 * value
    return f"{thousandths:.2g}" if 0.0 < abs(thousandths) < 0.1 else f"{thousandths:.2f}"


_PRESSURES = {"Pa": 1e-5, "kPa": 1e-2, "MPa": 10.0, "GPa": 1e4, "bar": 1.0, "kbar": 1e3, "atm": 1.01325}
"""In bar."""


def parse_pressure(text: str, unit: str) -> float:
    """``0.5``, ``0.5GPa``, ``-3 kbar`` as a number in a unit, which is that of a number that names none.

    Args:
        text: what is given.
        unit: GPa or bar.

    Raises:
        InputError: for anything else.

    >>> parse_pressure("1GPa", "bar"), parse_pressure("5 kbar", "GPa"), parse_pressure("2", "bar")
    (10000.0, 0.5, 2.0)
    """
    number = text.strip().rstrip("PGMkabrtm")
    given = text.strip()[len(number) :] or unit
    try:
        value = float(number)
    except ValueError:
        value = None
    if value is None or given not in _PRESSURES:
        raise InputError(
            f"{text[:60]!r} is no pressure",
            key="--pressure",
            hint=f"a number of {unit}, or 1bar, 0.5GPa, 3kbar, 1atm",
        )
    return value if given == unit else value * _PRESSURES[given] / _PRESSURES[unit]


def pressure_in_both(value: float, unit: str) -> str:
    """A pressure in bar and GPa, the unit that it is given in first.

    >>> pressure_in_both(1.0, "GPa"), pressure_in_both(1.0, "bar")
    ('1 GPa (10000 bar)', '1 bar (0.0001 GPa)')
    """
    other = "bar" if unit == "GPa" else "GPa"
    return f"{value:g} {unit} ({value * _PRESSURES[unit] / _PRESSURES[other]:.6g} {other})"


def parse_duration(text: str) -> datetime.timedelta:
    """``90s``, ``10m``, ``2h``, ``1d12h`` as a time.

    Raises:
        InputError: for anything else, and for no time at all.
    """
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?[dhms])+", text):
        raise InputError(
            f"{text!r} is not a time", key="trainer.max_time", hint="write 90s, 10m, 2h or 1d12h"
        )
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    given = [(units[unit], float(number)) for number, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms])", text)]
    parts = dict(given)
    if len(parts) < len(given):
        raise InputError(
            f"{text!r} has a unit twice", key="trainer.max_time", hint="write 90s, 10m, 2h or 1d12h"
        )
    try:
        duration = datetime.timedelta(**parts)
    except OverflowError as error:
        raise InputError(
            f"{text[:60]!r} is longer than 999999999 days", key="trainer.max_time", hint="leave it out"
        ) from error
    if not duration:
        raise InputError(
            f"{text!r} is no time at all", key="trainer.max_time", hint="write 90s, 10m, 2h or 1d12h"
        )
    return duration
