"""Diffusion of a walk whose coefficient is known, and a simulation that says what it is worth."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from pimlip_zoo.physics.liquid import diffusion_coefficient, mean_square_displacement

SHORT = [
    (f"{name}.{option}", setting)
    for name in ("rdf", "diffusion")
    for option, setting in (("equilibration", 40), ("steps", 400), ("temperature", 1500.0), ("interval", 10))
]


def test_a_random_walk_has_its_diffusion_coefficient():
    steps = np.random.default_rng(0).normal(scale=0.1, size=(400, 500, 3))
    walk = np.cumsum(steps, axis=0)
    # <r²> = 3 s² per step = 6 D.
    assert diffusion_coefficient(walk, 0.5) == pytest.approx(0.01 / 2 / 0.5, rel=0.03)
    lags, squares = mean_square_displacement(walk)
    np.testing.assert_allclose(squares, 0.03 * lags, rtol=0.05)


@pytest.fixture(scope="module")
def hot(measured):
    atoms = bulk("Cu", a=3.75, cubic=True).repeat(2)
    atoms.rattle(0.3, seed=2)
    return measured(EMT(), atoms, "rdf", "diffusion", kind="liquid", settings=SHORT)


def test_the_first_peak_is_the_distance_of_neighbours(hot):
    rdf = hot["rdf"]
    assert rdf["values"]["peak_position_all"]["value"] == pytest.approx(2.5, abs=0.2)
    assert rdf["values"]["peak_height_all"]["value"] > 1.5
    distances, curve = np.array(rdf["series"]["distances"]), np.array(rdf["series"]["g_all"])
    assert curve[distances < 1.5].max() == 0
    # The number of neighbours up to half of the box is that of the density there is.
    density = 32 / 7.5**3
    inside = (4 * np.pi * distances**2 * density * curve).sum() * (distances[1] - distances[0])
    assert inside == pytest.approx(4 / 3 * np.pi * 3.75**3 * density - 1, abs=4)


def test_both_properties_are_of_one_simulation(hot):
    assert hot["rdf"]["evaluations"] > 400
    assert hot["diffusion"]["evaluations"] == 0
    coefficient, error = (
        hot["diffusion"]["values"][f"{name}_Cu"] for name in ("coefficient", "standard_error")
    )
    assert coefficient["unit"] == "1e-9 m²/s"
    assert error["value"] >= 0
    doubted = any("standard error" in doubt for doubt in hot["diffusion"]["doubts"])
    assert doubted == (error["value"] > 0.3 * abs(coefficient["value"]))


def test_what_does_not_diffuse_has_no_coefficient_to_trust(measured):
    settings = [
        (f"diffusion.{key}", value) for key, value in (("equilibration", 20), ("steps", 200), ("interval", 5))
    ]
    found = measured(EMT(), bulk("Cu", cubic=True).repeat(2), "diffusion", kind="liquid", settings=settings)
    assert found["diffusion"]["status"] == "doubtful"
    assert any("nothing diffuses" in doubt for doubt in found["diffusion"]["doubts"])


def test_pairs_of_elements_have_a_curve_each(measured):
    atoms = bulk("Cu", a=3.8, cubic=True).repeat(2)
    atoms.symbols[:16] = "Al"
    settings = [("rdf.equilibration", 10), ("rdf.steps", 100)]
    found = measured(EMT(), atoms, "rdf", kind="liquid", settings=settings)["rdf"]
    assert {"g_all", "g_Al-Al", "g_Al-Cu", "g_Cu-Cu"} <= set(found["series"])
    parts = [np.array(found["series"][f"g_{pair}"]) for pair in ("Al-Al", "Al-Cu", "Cu-Cu")]
    # Concentrations of a half: the whole is a quarter of each like and a half of the unlike pairs.
    np.testing.assert_allclose(
        parts[0] / 4 + parts[1] / 2 + parts[2] / 4,
        found["series"]["g_all"],
        atol=0.06 * max(found["series"]["g_all"]),
    )


def test_a_simulation_that_falls_apart_gives_nothing(measured):
    from calculators import Repulsion

    class Pull(Repulsion):
        def calculate(self, *arguments, **options):
            super().calculate(*arguments, **options)
            self.results["forces"] = -200 * self.results["forces"]

    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.3, seed=0)
    found = measured(
        Pull(), atoms, "rdf", kind="liquid", settings=[("rdf.equilibration", 200), ("rdf.steps", 100)]
    )
    assert found["rdf"]["status"] == "failed"
    assert "unstable" in found["rdf"]["reason"]


def test_frames_that_no_slope_can_be_fitted_to_are_refused(measured):
    settings = [
        (f"diffusion.{key}", value) for key, value in (("equilibration", 5), ("steps", 200), ("interval", 10))
    ]
    found = measured(EMT(), bulk("Cu", cubic=True).repeat(2), "diffusion", kind="liquid", settings=settings)
    assert "are fewer than 24: raise diffusion.steps" in found["diffusion"]["reason"]
    assert not found["diffusion"]["values"]
