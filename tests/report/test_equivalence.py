import math

import numpy as np
import pytest

from pimlip_zoo.report.curve import curve_plot
from pimlip_zoo.report.equivalence import equivalences, falling

SIZES, SEEDS = (25, 50, 100, 200), (0, 1, 2)


def runs(weak, errors, noise=0.0, seeds=SEEDS, cpu=10.0, **more):
    """Rows with force errors by size; the noise is by seed, the same for all sizes."""
    return [
        {
            "test": "t",
            "weak": weak,
            "size": size,
            "seed": seed,
            "forces_rmse": error * math.exp(noise * (seed - 1)),
            "cpu_seconds": cpu,
            **more,
        }
        for size, error in errors.items()
        for seed in seeds
    ]


POWER = {size: 1.0 / math.sqrt(size) for size in SIZES}
PLAIN = runs("none", POWER)


@pytest.mark.parametrize("equal", [25.0, 40.0, 77.0, 200.0])
def test_on_a_power_law_the_number_is_the_one_that_has_the_same_error(equal):
    (found,) = equivalences([*PLAIN, *runs("gfn2", {50: 1.0 / math.sqrt(equal)})])
    assert found.equal == pytest.approx(equal, rel=1e-9)
    assert found.beyond == 0
    assert (found.low, found.high) == pytest.approx((equal, equal), rel=1e-9)
    assert found.sentence == f"50 labels with gfn2 = {found.number} plain labels in forces at equal time"


def test_beyond_the_ends_of_the_curve_nothing_is_claimed():
    better, worse = equivalences([*PLAIN, *runs("gfn2", {25: 0.01, 50: 0.5})])
    assert (better.beyond, better.equal) == (1, 200)
    assert better.number == "> 200 [200, >200]"
    assert (worse.beyond, worse.number) == (-1, "< 25 [<25, 25]")


def test_what_a_seed_does_to_all_runs_alike_cancels_and_what_it_does_to_one_kind_does_not():
    shared = [*runs("none", POWER, 0.2), *runs("gfn2", {50: 0.1}, 0.2)]
    opposite = [*runs("none", POWER, 0.2), *runs("gfn2", {50: 0.1}, -0.2)]
    (tight,), (wide,) = equivalences(shared), equivalences(opposite)
    assert tight.equal == pytest.approx(wide.equal) == pytest.approx(100.0)
    assert tight.high - tight.low < 1e-6
    assert wide.low < 80
    assert wide.high > 125


def test_one_seed_gives_a_number_without_an_interval():
    rows = [*runs("none", POWER, seeds=(0,)), *runs("gfn2", {50: 0.1}, seeds=(0,))]
    (found,) = equivalences(rows)
    assert (found.low, found.high) == (None, None)
    assert "one seed: no interval" in found.sentence


def test_another_computing_time_is_said():
    (found,) = equivalences([*PLAIN, *runs("gfn2", {50: 0.1}, cpu=23.0)])
    assert found.time == pytest.approx(2.3)
    assert "at 2.3 times the computing time" in found.sentence


def test_stability_counts_the_other_way_round_and_what_was_not_measured_is_left_out():
    lasting = {size: {"stable_ps": 0.1 * size} for size in SIZES}
    rows = [row for size in SIZES for row in runs("none", {size: POWER[size]}, **lasting[size])]
    rows += runs("gfn2", {50: 0.1}, stable_ps=12.0)
    forces, stability = equivalences(rows)
    assert (forces.quantity, stability.quantity) == ("forces", "stability")
    assert stability.equal == pytest.approx(120.0)
    assert equivalences(runs("gfn2", {50: 0.1})) == []
    assert equivalences([*runs("none", {50: 0.2}), *runs("gfn2", {50: 0.1})]) == []
    assert equivalences([]) == []


def test_a_curve_that_rises_by_chance_is_pooled():
    np.testing.assert_allclose(falling(np.array([4.0, 1.0, 2.0, 0.5])), [4.0, 1.5, 1.5, 0.5])
    np.testing.assert_allclose(falling(np.array([1.0, 2.0, 3.0])), [2.0, 2.0, 2.0])


def test_the_plot_says_it(tmp_path):
    rows = [*PLAIN, *runs("gfn2", {50: 0.1})]
    summary = [
        {**row, "seeds": 3, "forces_rmse_std": 0.01, "energy_per_atom_rmse": None}
        for row in rows
        if row["seed"] == 0
    ]
    curve_plot(summary, tmp_path / "a.svg", equivalences(rows))
    assert (tmp_path / "a.svg").stat().st_size > 10_000
