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
