"""From a structure and a reference code to a potential: what is asked for, the rounds themselves, what they brought."""

from pimlip_zoo.rounds.options import Rounds, load_rounds
from pimlip_zoo.rounds.run import StoppedError, run_rounds
from pimlip_zoo.rounds.story import REPORT, TABLE, curve_point, read_table, write_rounds_report

__all__ = [
    "REPORT",
    "TABLE",
    "Rounds",
    "StoppedError",
    "curve_point",
    "load_rounds",
    "read_table",
    "run_rounds",
    "write_rounds_report",
]
