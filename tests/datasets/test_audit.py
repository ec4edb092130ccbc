import json
from dataclasses import replace

import numpy as np
import pytest
from ase.io import write
from example_frames import crystal, molecule

from pimlip_zoo.datasets.audit import audit, audit_surveys, survey_frames
from pimlip_zoo.datasets.audit.alignment import displacement
from pimlip_zoo.datasets.audit.consistency import _Slope, _verdict
from pimlip_zoo.datasets.audit.references import fit_atom_energies
from pimlip_zoo.datasets.audit.report import as_html, as_json, describe, finding_table, survey_tables
from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.frame import Frame, frame_to_atoms
from pimlip_zoo.errors import InputError

HARTREE, BOHR, KCAL, GPA = 27.211386, 0.529177, 0.0433641, 1 / 160.21766


@pytest.fixture(scope="module")
def ethanol():
    return load_builtin("ethanol-gfn2/train")[:400]


@pytest.fixture(scope="module")
def elastic():
    """A harmonic crystal under many strains: energy, forces and stress known in closed form."""
    rng = np.random.default_rng(1)
    reference = 8.0 * np.eye(3)
    sites = np.stack(np.meshgrid(*[[0.25, 0.75]] * 3), axis=-1).reshape(-1, 3)
    stiffness, springs = 0.7, 3.0
    frames = []
    for k in range(80):
        noise = 0.02 * rng.normal(size=(3, 3))
        strain = 0.5 * (noise + noise.T) if k % 2 else np.zeros((3, 3))
        cell = reference @ (np.eye(3) + strain)
        shift = 0.05 * rng.normal(size=(8, 3))
        shift -= shift.mean(axis=0)
        volume = abs(np.linalg.det(cell))
        # E = V0 K/2 |e|^2 + k/2 |u|^2 at fixed u, to second order in the strain.
        energy = 0.5 * 512 * stiffness * np.sum(strain**2) + 0.5 * springs * np.sum(shift**2)
        frames.append(
            Frame(
                numbers=np.full(8, 14),
                positions=sites @ cell + shift,
                cell=cell,
                pbc=np.ones(3, dtype=bool),
                energy=float(energy) - 40.0,
                forces=-springs * shift,
                stress=512 * stiffness * strain / volume,
            )
        )
    return frames


def codes(frames, **options):
    return audit_surveys([survey_frames("train", frames)], **options).codes()


def refused(frames, **options):
    return {
        finding.code
        for finding in audit_surveys([survey_frames("train", frames)], **options).findings
        if finding.severity == "refused"
    }


def grave(found):
    return [finding.code for finding in found.findings if finding.severity != "note"]


def test_clean_molecules_raise_no_alarm(ethanol):
    found = audit_surveys(
        [survey_frames("train", ethanol), survey_frames("valid", load_builtin("ethanol-gfn2/valid"))]
    )
    assert grave(found) == []
    assert "force-consistent" in found.codes()


def test_clean_crystals_raise_no_alarm(elastic):
    found = audit_surveys([survey_frames("train", elastic)])
    assert grave(found) == []
    assert {"force-consistent", "stress-consistent"} <= found.codes()


def test_other_builtin_crystals_raise_no_alarm_but_for_missing_stress():
    found = audit({"train": "builtin:cual-emt"})
    assert not found.refused
    assert set(grave(found)) <= {"partial-stress"}


def test_gradients_given_as_forces_are_found(ethanol):
    assert refused([replace(f, forces=-f.forces) for f in ethanol]) == {"force-sign"}


@pytest.mark.parametrize(
    ("factor", "unit"),
    [
        (BOHR / HARTREE, "Hartree/Bohr"),
        (1 / KCAL, "kcal/mol/Å"),
        (BOHR, "eV/Bohr"),
        (-1 / KCAL, "kcal/mol/Å"),
        (1 / HARTREE, "Hartree/Å"),
    ],
)
def test_forces_in_another_unit_are_found_and_named(ethanol, factor, unit):
    found = audit_surveys([survey_frames("train", [replace(f, forces=f.forces * factor) for f in ethanol])])
    (finding,) = [f for f in found.findings if f.code == "force-unit"]
    assert finding.severity == "refused"
    assert unit in finding.message
    assert ("opposite sign" in finding.message) == (factor < 0)


@pytest.mark.parametrize(
    ("change", "unit"),
    [
        (lambda f: replace(f, energy=f.energy / HARTREE), "energies in Hartree"),
        (lambda f: replace(f, positions=f.positions / BOHR), "positions in Bohr"),
    ],
)
def test_energies_and_positions_in_another_unit_are_found(ethanol, change, unit):
    found = audit_surveys([survey_frames("train", [change(f) for f in ethanol])])
    (finding,) = [f for f in found.findings if f.severity == "refused"]
    assert unit in finding.message


@pytest.mark.parametrize(
    ("factor", "code"), [(-1, "stress-sign"), (160.21766, "stress-unit"), (1602.1766, "stress-unit")]
)
def test_stress_with_another_sign_or_unit_is_found(elastic, factor, code):
    frames = [replace(f, stress=f.stress * factor) for f in elastic]
    assert code in codes(frames)
    assert refused(frames) == {code}


def test_an_energy_that_does_not_belong_is_found(ethanol):
    frames = [*ethanol[:50], replace(ethanol[50], energy=ethanol[50].energy + 5.0), *ethanol[51:]]
    found = audit_surveys([survey_frames("train", frames)])
    (finding,) = [f for f in found.findings if f.code == "energy-outliers"]
    assert finding.frames == (50,)


def test_a_force_that_exploded_is_found(ethanol):
    forces = ethanol[7].forces.copy()
    forces[0] += 500.0
    found = audit_surveys(
        [survey_frames("train", [*ethanol[:7], replace(ethanol[7], forces=forces), *ethanol[8:]])]
    )
    by_code = {f.code: f for f in found.findings}
    assert by_code["force-outliers"].frames == (7,)
    assert by_code["net-forces"].frames == (7,)


def test_net_forces_are_found(ethanol):
    assert "net-forces" in codes([replace(f, forces=f.forces + np.array([0.5, 0, 0])) for f in ethanol])


def test_forces_that_were_not_computed_but_written_as_zero_are_found(ethanol):
    assert "forces-zero" in codes([replace(f, forces=np.zeros((9, 3))) for f in ethanol])


def test_duplicates_are_found_and_contradictions_among_them(ethanol):
    frames = [*ethanol[:100], ethanol[3], replace(ethanol[4], energy=ethanol[4].energy + 1.0)]
    found = audit_surveys([survey_frames("train", frames)])
    by_code = {f.code: f for f in found.findings}
    assert by_code["duplicates"].frames == (100, 101)
    assert by_code["duplicates"].values["pairs"] == [[3, 100], [4, 101]]
    assert by_code["contradictory-duplicates"].frames == (101,)
    assert not found.refused


def leakage(train, test):
    found = audit_surveys([survey_frames("train", train), survey_frames("test", test)])
    return {f.code: f for f in found.findings if "leakage" in f.code}


def test_frames_of_the_test_set_that_are_in_the_training_set_are_refused(ethanol):
    found = leakage(ethanol[:100], [*ethanol[100:150], ethanol[20], ethanol[21]])
    assert found["leakage"].frames == (50, 51)
    assert found["leakage"].severity == "refused"
    assert leakage(ethanol[:100], ethanol[100:200]) == {}


def test_nearly_identical_frames_leak_also_when_they_are_turned_and_moved(ethanol):
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    copy = replace(
        ethanol[5],
        positions=(ethanol[5].positions + 0.002 * rng.normal(size=(9, 3))) @ rotation + [1.0, 2.0, 3.0],
    )
    assert leakage(ethanol[:100], [*ethanol[100:150], copy])["near-leakage"].frames == (50,)


def test_leakage_is_found_in_periodic_sets(elastic):
    shifted = replace(elastic[4], positions=elastic[4].positions + elastic[4].cell[0] + 0.3)
    assert leakage(elastic[:40], [*elastic[40:], shifted])["near-leakage"].frames == (40,)


def test_a_label_that_is_asked_for_and_missing_is_refused(ethanol):
    frames = [replace(f, forces=None) for f in ethanol[:50]]
    assert refused(frames) == set()
    assert refused(frames, labels=["energy", "forces"]) == {"missing-forces"}
    assert refused([replace(f, energy=None) for f in ethanol[:50]]) == {"missing-energy"}
    assert refused([replace(f, energy=None, forces=None) for f in ethanol[:50]]) == {"no-labels"}


def test_partial_labels_are_counted(ethanol):
    frames = [*ethanol[:40], *(replace(f, forces=None) for f in ethanol[40:45])]
    found = audit_surveys([survey_frames("train", frames)])
    (finding,) = [f for f in found.findings if f.code == "partial-forces"]
    assert (finding.count, finding.frames) == (5, (40, 41, 42, 43, 44))


def test_isolated_atoms_without_forces_are_no_partial_labels(ethanol):
    atom = Frame(numbers=np.array([1]), positions=np.zeros((1, 3)), energy=-13.6)
    assert "partial-forces" not in codes([*ethanol[:50], atom])


def test_references_of_another_method_are_refused(ethanol):
    energies = {
        "H": -13.6,
        "C": -1029.0,
        "O": -2041.0,
    }  # of all electrons; the set has valence electrons only
    assert refused(ethanol[:50], atom_energies=energies) == {"references-wrong"}
    assert "references-missing" in codes(ethanol[:50], atom_energies={"H": -13.6})


def test_undetermined_references_are_said():
    assert "references-undetermined" in codes(
        [molecule(s, numbers=np.array([8, 1, 1, 1, 1])) for s in range(5)]
    )


def test_contacts_lonely_atoms_and_thin_cells_are_found():
    close = molecule(0)
    close.positions[1] = close.positions[0] + [0.3, 0, 0]
    far = molecule(1)
    far.positions[4] += 50.0
    thin = crystal(2, n=1, cell=np.diag([3.0, 6.0, 6.0]))
    found = audit_surveys([survey_frames("train", [molecule(3), close, far, thin])])
    by_code = {f.code: f.frames for f in found.findings}
    assert by_code["too-close"] == (1,)
    assert by_code["isolated-atoms"] == (2,)
    assert by_code["thin-cells"] == (3,)


def test_fitted_references_are_exact_where_the_data_determine_them():
    rng = np.random.default_rng(0)
    table = np.zeros((6, 119), dtype=np.int64)
    table[:, [1, 6, 8]] = rng.integers(1, 9, (6, 3))
    truth = np.zeros(119)
    truth[[1, 6, 8]] = [-13.0, -1000.0, -2000.0]
    composition = rng.integers(0, 6, 40)
    fit = fit_atom_energies(table, composition, (table @ truth)[composition])
    assert fit.determined
    assert fit.energies == pytest.approx({"H": -13.0, "C": -1000.0, "O": -2000.0})
    np.testing.assert_allclose(fit.residual, 0, atol=1e-9)


def test_displacements_do_not_see_rotations_of_crystals():
    rng = np.random.default_rng(0)
    a = crystal(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    moved = 0.01 * rng.normal(size=(4, 3))
    moved -= moved.mean(axis=0)
    b = replace(a, positions=(a.positions + moved) @ rotation, cell=a.cell @ rotation)
    way = displacement(a, b)
    np.testing.assert_allclose(way.moved, moved, atol=1e-12)
    np.testing.assert_allclose(way.rotation, rotation.T, atol=1e-12)
    assert not way.strain.any()


def test_files_with_bad_frames_are_refused_and_the_rest_is_audited(tmp_path, ethanol):
    atoms = [frame_to_atoms(f) for f in ethanol[:30]]
    atoms[7].positions[1] = atoms[7].positions[0]
    write(tmp_path / "a.extxyz", atoms)
    found = audit({"train": f"{tmp_path}/a.extxyz"})
    (finding,) = [f for f in found.findings if f.code == "unusable"]
    assert finding.frames == (7,)
    assert found.refused
    assert len(found.surveys[0]) == 29
    with pytest.raises(InputError, match="no such file"):
        audit({"train": f"{tmp_path}/b.extxyz"})


def test_reports_hold_what_was_found(ethanol):
    found = audit_surveys([survey_frames("<train>", [replace(f, forces=-f.forces) for f in ethanol])])
    content = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert content["refused"]
    assert content["findings"][0]["code"] == "force-sign"
    assert content["data"][0]["labels"] == {"energy": 400, "forces": 400, "stress": 0}
    assert content["data"][0]["compositions"] == {"C2H6O": 400}
    page = as_html(found)
    assert "forces have the wrong sign" in page
    assert "<train>" not in page
    assert "&lt;train&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert finding_table(found).row_count == len(found.findings)
    assert survey_tables(found.surveys[0])
    assert describe(survey_frames("none", []))["structures"] == 0


def liquid(pbc, vacuum=0.0, skew=0.0, outside=False):
    """Atoms on a shaken lattice that fill a cell, and then so much vacuum along the third direction."""
    rng = np.random.default_rng(5)
    sites = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3) * 2.6 + 1.3
    positions = sites + rng.uniform(-0.3, 0.3, sites.shape)
    cell = 10.4 * np.eye(3)
    cell[2, 2] += vacuum
    cell[1, 0] = skew
    positions[:, 0] += positions[:, 1] / 10.4 * skew
    if outside:  # as trajectories have them that are not wrapped
        positions += rng.integers(-1, 2, positions.shape) @ cell
    numbers = np.full(len(positions), 18)
    return Frame(numbers, positions, cell, np.array(pbc), energy=0.0, forces=np.zeros((64, 3)))


@pytest.mark.parametrize("options", [{}, {"skew": 4.0}, {"vacuum": 0.5}])
def test_a_filled_cell_without_periodicity_is_warned_of(options):
    (finding,) = [
        finding
        for finding in audit_surveys([survey_frames("train", [liquid([False] * 3, **options)] * 2)]).findings
        if finding.code == "open-cells"
    ]
    assert finding.severity == "warning"
    assert finding.count == 2
    assert "pbc" in finding.hint


def test_a_filled_cell_that_is_not_wrapped_is_warned_of():
    assert "open-cells" in codes([liquid([True, True, False], outside=True)])


@pytest.mark.parametrize(
    "frame",
    [
        liquid([True] * 3),
        liquid([True, True, False], vacuum=10.0),
        liquid([False] * 3, vacuum=10.0),
        replace(liquid([False] * 3), cell=np.zeros((3, 3))),
        replace(liquid([False] * 3), cell=np.eye(3)),
        replace(molecule(), cell=20.0 * np.eye(3)),
    ],
    ids=["periodic", "slab", "slab without periodicity", "cluster", "cell of 1 Å", "molecule in a box"],
)
def test_cells_that_end_in_vacuum_are_not(frame):
    assert "open-cells" not in codes([frame])


@pytest.mark.parametrize(
    ("factor", "error", "severity"), [(1.37, 0.09, "note"), (1.37, 0.005, "warning"), (1.9, 0.09, "warning")]
)
def test_a_factor_is_warned_of_where_its_error_does_not_explain_it(ethanol, factor, error, severity):
    survey = survey_frames("train", ethanol[:20])
    found = _verdict(survey, "stress", "stress", _Slope(factor, error, 0.84, 41), {})
    assert found.severity == severity


def test_the_last_word_does_not_contradict_warnings(ethanol):
    twice = audit_surveys([survey_frames("train", [*ethanol[:20], ethanol[0]])])
    assert "look at the warnings" in as_html(twice)


@pytest.mark.parametrize("cutoff", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_cutoff_that_is_no_length_is_refused(ethanol, cutoff):
    with pytest.raises(InputError, match=r"--cutoff: .* Å is not possible \(a length"):
        survey_frames("train", ethanol[:1], cutoff=cutoff)
