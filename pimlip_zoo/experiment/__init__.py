"""A run, put together from its configuration and carried out."""

from pimlip_zoo.experiment.build import unlabelled_frames, weak_terms
from pimlip_zoo.experiment.check import checked_structures
from pimlip_zoo.experiment.data import load_split
from pimlip_zoo.experiment.prepare import Experiment, prepare
from pimlip_zoo.experiment.ranks import from_rank_zero, join_ranks
from pimlip_zoo.experiment.recipe import for_stage
from pimlip_zoo.experiment.record import (
    check_data,
    check_free,
    check_settings,
    data_record,
    has_checkpoint,
    split_of_run,
    write_record,
)
from pimlip_zoo.experiment.run import Outcome, steps_done, train
from pimlip_zoo.written import parse_duration

__all__ = [
    "Experiment",
    "Outcome",
    "check_data",
    "check_free",
    "check_settings",
    "checked_structures",
    "data_record",
    "for_stage",
    "from_rank_zero",
    "has_checkpoint",
    "join_ranks",
    "load_split",
    "parse_duration",
    "prepare",
    "split_of_run",
    "steps_done",
    "train",
    "unlabelled_frames",
    "weak_terms",
    "write_record",
]
