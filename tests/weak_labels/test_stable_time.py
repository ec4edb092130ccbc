"""Stable times of a learning curve: only those of one time and temperature stand beside each other."""

from pimlip_zoo.experiment.stable_time import FILE, settings_of, stable_ps
from pimlip_zoo.files import write_json

COLD, HOT = settings_of(1.0, 300.0), settings_of(1.0, 600.0)


def _runs(tmp_path, *settings):
    runs = []
    for number, each in enumerate(settings):
        run = tmp_path / f"run{number}"
        run.mkdir()
        if each is not None:
            write_json(run / FILE, {"settings": each, "times": {"a.xyz": [0.5, 0.25 + number]}})
        runs.append(run)
    return runs


def test_times_of_one_setting_are_told(tmp_path):
    assert stable_ps(_runs(tmp_path, COLD, None, COLD)) == [{"a.xyz": 0.375}, {}, {"a.xyz": 1.375}]


def test_times_at_two_temperatures_are_not_told_side_by_side(tmp_path):
    assert stable_ps(_runs(tmp_path, COLD, HOT)) == [{}, {}]


def test_a_command_tells_the_times_of_its_own_temperature(tmp_path):
    runs = _runs(tmp_path, COLD, HOT)
    assert stable_ps(runs, HOT) == [{}, {"a.xyz": 0.875}]
    assert stable_ps(runs, settings_of(2.0, 600.0)) == [{}, {}]


def test_a_run_that_was_stopped_before_its_first_time_has_none(tmp_path):
    (run,) = _runs(tmp_path, None)
    write_json(run / FILE, {"settings": HOT, "times": {}})
    assert stable_ps([run]) == stable_ps([run], HOT) == [{}]
