"""``eval --physics``: one command, one JSON, a section of the report; what is wrong is refused in one line."""

import json
import signal

import ase.io
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from typer.testing import CliRunner

from pimlip_zoo.cli import app
from pimlip_zoo.cli.console import console
from pimlip_zoo.cli.physics import PhysicsFile, check_measured, check_request, measured_reference, request_of
from pimlip_zoo.errors import InputError
from pimlip_zoo.experiment.curve import Point, run_points
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.registry import get_model
from pimlip_zoo.report.html import ReportData, render_report
from pimlip_zoo.training.checkpoint import KEY, describe

PART = ("--physics", "--structure=bulk:Cu")


@pytest.fixture
def run(tmp_path):
    """A run folder of random weights."""
    torch.manual_seed(0)
    config = get_model("nequip").configure(channels=4, radial_hidden=(4,), cutoff=3.0, avg_num_neighbors=6.0)
    potential = Potential(get_model("nequip").model(config, ("Cu",)), scale=1e-3)
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({KEY: describe(potential), "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture
def emt(monkeypatch):
    """EMT in the place of the run's potential."""
    monkeypatch.setattr("pimlip_zoo.api.calculator", lambda *_, **__: EMT())


def test_one_command_gives_one_json_and_a_section_of_the_report(cli, run, emt, tmp_path):
    reference = tmp_path / "reference.yaml"
    reference.write_text("lattice: {a: {value: 3.59, tolerance: 0.01}}\nelastic: {C11: 168.0}\n")
    done = cli("eval", run, *PART, "--properties=lattice,elastic,rdf", f"--reference={reference}")
    assert done.code == 0, done
    assert "not applicable: rdf: for liquids only" in done.out
    assert "Ctrl-C" in done.out
    content = json.loads((run / "physics.json").read_text())
    assert content["precision"] == "float64"
    found = content["structures"]["bulk:Cu"]["properties"]
    assert found["lattice"]["values"]["a"]["value"] == pytest.approx(3.5898, abs=1e-3)
    assert found["elastic"]["values"]["C11"]["error"] == pytest.approx(172.6 - 168, abs=0.5)
    assert found["rdf"]["status"] == "not applicable"
    html = render_report(ReportData(name="x", physics=content))
    assert "lattice.a" in html.replace("<wbr>", "")
    assert "for liquids only; this is a crystal" in html


def test_the_report_cuts_long_lists_short():
    from pimlip_zoo.report.physics import physics_rows

    values = {
        "frequencies_X": {"value": [4.64] * 96, "unit": "THz"},
        "frequencies_G": {"value": [1.0, 2.0], "unit": "THz"},
    }
    long, short = physics_rows({"properties": {"phonons": {"values": values}}})
    assert long[1] == "4.64 4.64 4.64 4.64 4.64 4.64 … (96)"
    assert short[1] == "1 2"


def test_properties_of_an_unfinished_training_are_marked(cli, run, emt):
    from pimlip_zoo.training.checkpoint import read_checkpoint

    content = read_checkpoint(run / "checkpoints" / "best.ckpt")
    torch.save(content | {"global_step": 300}, run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_text("trainer:\n  max_steps: 6000\n")
    done = cli("eval", run, *PART, "--properties=lattice")
    assert done.code == 0, done
    assert "the training has not ended (step 300 of 6,000)" in done.out
    content = json.loads((run / "physics.json").read_text())
    assert content["unfinished"] == {"step": 300, "of": 6000}
    html = render_report(ReportData(name="x", physics=content))
    assert "Measured before the training had ended, at step 300 of 6,000." in html


def test_a_value_outside_of_its_tolerance_is_exit_code_1(cli, run, emt, tmp_path):
    reference = tmp_path / "reference.yaml"
    reference.write_text("lattice: {a: {value: 3.7, tolerance: 0.01}}")
    done = cli("eval", run, *PART, "--properties=lattice", f"--reference={reference}")
    assert done.code == 1
    assert "outside of the tolerance: bulk:Cu: lattice.a" in done.out


def test_another_potential_is_a_reference(cli, run, emt, tmp_path):
    done = cli("eval", run, *PART, "--properties=lattice", "--reference=emt", f"--json={tmp_path / 'x.json'}")
    assert done.code == 0, done
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["structures"]["bulk:Cu"]["properties"]["lattice"]["values"]["a"]["error"] == 0


def test_what_was_measured_before_stays_beside_what_is_new(cli, run, emt):
    assert cli("eval", run, *PART, "--properties=lattice").code == 0
    assert cli("eval", run, *PART, "--properties=bonds", "--structure=bulk:Al").code == 0
    structures = json.loads((run / "physics.json").read_text())["structures"]
    assert set(structures["bulk:Cu"]["properties"]) == {"lattice", "bonds"}
    assert set(structures["bulk:Al"]["properties"]) == {"bonds"}
    (run / "checkpoints" / "best.ckpt").write_bytes(b"other weights")
    assert cli("eval", run, *PART, "--properties=lattice").code == 0
    structures = json.loads((run / "physics.json").read_text())["structures"]
    assert {name: set(part["properties"]) for name, part in structures.items()} == {"bulk:Cu": {"lattice"}}


def test_ctrl_c_keeps_what_was_computed(cli, run, monkeypatch):
    class Interrupting(EMT):
        count = 0

        def calculate(self, *arguments, **options):
            super().calculate(*arguments, **options)
            Interrupting.count += 1
            if Interrupting.count == 20:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("pimlip_zoo.api.calculator", lambda *_, **__: Interrupting())
    done = cli("eval", run, *PART, "--properties=lattice,elastic,vacancy")
    assert done.code == 130
    assert "what was computed is kept" in done.out
    found = json.loads((run / "physics.json").read_text())["structures"]["bulk:Cu"]["properties"]
    assert [one["status"] for one in found.values()] == ["computed", "stopped", "not reached"]


def test_a_run_s_own_potential_is_measured_in_double_precision_or_as_told(cli, run, tmp_path):
    for dtype in ("float64", "float32"):
        done = cli(
            "eval",
            run,
            *PART,
            "--properties=bonds",
            "--kind=slab",
            f"--dtype={dtype}",
            "--set=bonds.spacing=0.1",
        )
        assert done.code == 0, done
        content = json.loads((run / "physics.json").read_text())
        assert content["precision"] == dtype
        assert content["structures"]["bulk:Cu"]["properties"]["bonds"]["evaluations"] > 0


def test_what_is_measured_under_a_name_is_one_structure_with_one_reference(tmp_path):
    """The file of the structure changes between two calls."""
    structure, points = tmp_path / "cell.extxyz", tmp_path / "curve"
    ase.io.write(structure, bulk("Cu"))
    options = {"properties": "lattice", "settings": None, "reference": "emt"}
    request = request_of(structures=[str(structure)], **options)
    measured_reference(request, tmp_path / "reference.json", console())
    first = json.loads((tmp_path / "reference.json").read_text())
    (points / "none-5-seed0").mkdir(parents=True)
    result = points / "none-5-seed0" / "result.json"
    result.write_text(json.dumps({"physics": first}))
    check_measured(request, [result])
    ase.io.write(structure, bulk("Au"))
    with pytest.raises(InputError, match=r"result\.json: .*cell\.extxyz was another structure"):
        check_measured(request, [result])
    measured_reference(request, tmp_path / "reference.json", console())
    second = json.loads((tmp_path / "reference.json").read_text())
    a = [
        content["structures"][str(structure)]["properties"]["lattice"]["values"]["a"]["value"]
        for content in (first, second)
    ]
    assert a[1] - a[0] == pytest.approx(0.49, abs=0.05)


def test_two_measurements_of_a_run_keep_each_others_results(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    lattice = {"lattice": {"status": "computed", "values": {}}}
    part = {"formula": "Cu", "atoms": 1, "kind": "crystal", "fingerprint": "a", "properties": lattice}
    first, second = (PhysicsFile(tmp_path, None) for _ in range(2))
    first.save({"structures": {"Cu": part}})
    second.save({"structures": {"Al": part}})
    assert set(json.loads((tmp_path / "physics.json").read_text())["structures"]) == {"Cu", "Al"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "physics.json"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--data"),
        (("--structure=bulk:Cu",), "add --physics"),
        (("--physics",), "give --structure"),
        (("--physics", "--structure=bulk:Fe"), "Fe, which the potential does not know"),
        (("--physics", "--structure=bulk:Xx"), "bulk:Xx: ASE cannot build it"),
        (("--physics", "--structure=molecule:CH3CH2OX"), "did you mean"),
        (("--physics", "--structure=none.xyz"), "no such file"),
        ((*PART, "--structure=bulk:Cu"), "given twice"),
        ((*PART, "--properties=latice"), "lattice"),
        ((*PART, "--set=phonons.widht=3"), "did you mean width"),
        ((*PART, "--reference=nothing"), "gfn2"),
        ((*PART, "--reference=nothing.yaml"), "no such file"),
        ((*PART, "--to=bulk:Al"), "other atoms"),
        ((*PART, "--kind=metal"), "--kind"),
        ((*PART, "--plot=x.png"), "give --data"),
        ((*PART, "--set=elastic.strain=0.01", "--set=elastic.strain=0.02"), "twice: 0.01 and 0.02"),
    ],
)
def test_wrong_uses_are_refused_in_one_line(refused, run, arguments, says):
    refused("eval", run, *arguments, says=(says,))


def test_models_lists_what_is_measured(cli):
    content = json.loads(cli("models", "--physics", "--json").out)
    assert {"lattice", "elastic", "phonons", "vacancy", "rdf", "torsions", "neb"} <= set(content)
    assert content["elastic"]["kinds"] == ["crystal"]
    assert content["elastic"]["options"]["strain"]["default"] == 0.005
    assert "elastic.strain=0.005" in cli("models", "--physics").out


def test_a_curve_is_judged_by_properties_too_also_afterwards(tmp_path, monkeypatch):
    """The points are finished: only what is missing is added."""
    # These points are written by hand: there are no structures and options of theirs to compare.
    monkeypatch.setattr("pimlip_zoo.experiment.curve.check_finished", lambda *_: None)
    errors = dict.fromkeys(("energy", "energy_per_atom", "forces"))
    points = [Point(5, "none", seed) for seed in (0, 1)]
    for point in points:
        (tmp_path / point.name).mkdir()
        content = {
            "size": 5,
            "weak": "none",
            "seed": point.seed,
            "steps": 1,
            "seconds": 1.0,
            "cpu_seconds": 1.0,
        }
        (tmp_path / point.name / "result.json").write_text(json.dumps({**content, "tests": {"t": errors}}))
    asked = []

    def judge(run):
        asked.append(run.name)
        row = {"value": 3.6 + len(asked) / 10, "unit": "Å", "reference": 3.6, "error": len(asked) / 10}
        lattice = {"status": "computed", "values": {"a": row}}
        return {"structures": {"Cu": {"properties": {"lattice": lattice}}}}, None

    assert run_points(points, (), ["t"], tmp_path, judge=judge) is None
    assert run_points(points, (), ["t"], tmp_path, judge=judge) is None
    assert asked == ["none-5-seed0", "none-5-seed1"]
    lines = (tmp_path / "physics-curve.csv").read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert row["property"] == "lattice.a"
    assert float(row["value"]) == pytest.approx(3.75)
    assert float(row["rms_error"]) == pytest.approx((0.05 / 2) ** 0.5)
    # A measurement that was ended is none.
    (tmp_path / "none-5-seed2").mkdir()
    (tmp_path / "none-5-seed2" / "result.json").write_text(
        json.dumps({**content, "seed": 2, "tests": {"t": errors}})
    )
    assert run_points([Point(5, "none", 2)], (), ["t"], tmp_path, judge=lambda run: ({}, 2)) == 2
    assert "physics" not in json.loads((tmp_path / "none-5-seed2" / "result.json").read_text())


def test_a_reference_potential_of_a_curve_is_measured_once(tmp_path):
    request = request_of(structures=["bulk:Cu"], properties="lattice", settings=None, reference="emt")
    file = tmp_path / "reference.json"
    found = measured_reference(request, file, console())
    assert found.reference == str(file)
    assert (
        json.loads(file.read_text())["structures"]["bulk:Cu"]["properties"]["lattice"]["values"]["a"]["unit"]
        == "Å"
    )
    written = file.stat().st_mtime_ns
    measured_reference(request, file, console())
    assert file.stat().st_mtime_ns == written
    check_request(found)
    other = request_of(structures=["bulk:Al"], properties="lattice", settings=None, reference="emt")
    measured_reference(other, file, console())
    assert list(json.loads(file.read_text())["structures"]) == ["bulk:Al"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--reference=emt",), "add --physics"),
        (("--physics=bulk:Xx",), "ASE cannot build it"),
        (("--physics=bulk:Cu", "--properties=latice"), "lattice"),
    ],
)
def test_a_curve_refuses_wrong_properties_before_it_trains(refused, arguments, says):
    common = ("curve", "--data=builtin:cual-emt", "--test=builtin:cual-emt/test", "--sizes=5")
    refused(*common, *arguments, says=(says,))


def test_a_path_between_two_files_of_different_atoms_is_refused(refused, run, tmp_path):
    write(tmp_path / "a.extxyz", bulk("Cu"))
    write(tmp_path / "b.extxyz", bulk("Cu", cubic=True))
    refused("eval", run, "--physics", "--structure=a.extxyz", "--to=b.extxyz", says=("same order",))


@pytest.mark.slow
def test_a_copper_potential_from_the_built_in_data(cli, tmp_path):
    """Trained on EMT, measured, and compared with EMT through the same code."""
    run = tmp_path / "run"
    trained = cli("train", "--data=builtin:cual-emt", "--max-steps=400", f"--out={run}")
    assert trained.code == 0, trained.err
    done = cli("eval", run, *PART, "--reference=emt", "--set=phonons.width=8")
    assert done.code == 0, done
    found = json.loads((run / "physics.json").read_text())["structures"]["bulk:Cu"]["properties"]
    for name in ("lattice", "equation_of_state", "elastic", "phonons", "vacancy", "surfaces", "bonds"):
        assert found[name]["status"] == "computed", (name, found[name]["doubts"])
    errors = {
        f"{kind}.{name}": row["error"]
        for kind, one in found.items()
        for name, row in one.get("values", {}).items()
    }
    assert abs(errors["lattice.a"]) < 0.01
    for name in ("elastic.C11", "elastic.C12", "elastic.C44", "equation_of_state.bulk_modulus"):
        assert abs(errors[name]) < 25, name
    assert errors["phonons.frequencies_X"] < 0.6
    assert abs(errors["vacancy.formation_energy"]) < 0.2
    assert "Properties" in (run / "report.html").read_text()


def test_a_run_that_is_not_there_is_named_before_its_structures(tmp_path):
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "nowhere"), "--physics"])
    assert isinstance(done.exception, InputError)
    assert str(done.exception.file) == str(tmp_path / "nowhere")
    assert "no such file" in str(done.exception)
