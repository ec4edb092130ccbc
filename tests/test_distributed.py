"""Two processes train as one does."""

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pimlip_zoo.datasets.builtin import load_builtin
from pimlip_zoo.datasets.lmdb import write_store

TRAIN = [
    "train",
    "--model",
    "nequip",
    "--max-steps",
    "5",
    "--dtype",
    "float64",
    "--seed",
    "3",
    "--device",
    "cpu",
]
DATA = ["--data", "builtin:ethanol-gfn2/train@:25", "--valid", "builtin:ethanol-gfn2/valid@:10"]
COMMAND = "from pimlip_zoo.cli import main; main()"
ONLY_A_FOLLOWER = (
    "import pimlip_zoo.experiment.build as build; build.force_rms = build.average_neighbours = None;"
    "import pimlip_zoo.weak_labels.pool as pool; pool._Work = None;"
)
WEAK = {
    "calculator": "emt",
    "steps": "3",
    "batch_size": "4",
    "pool.structures": "12",
    "pool.method": "displaced",
    "pool.max_force": "1000",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(command, arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *command, *TRAIN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(job):
    return job.communicate(timeout=300)[0].decode(), job.returncode


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def train_with_ranks(ranks, arguments):
    """Outputs and exit codes, started as torchrun does; only the first can compute statistics and weak labels."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    shared |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    jobs = [
        launch(
            ["-c", ONLY_A_FOLLOWER * (rank > 0) + COMMAND],
            ["--devices", ranks, *arguments],
            **shared,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(ranks)
    ]
    return [finish(job) for job in jobs]


def assert_same_losses(one, two):
    """Of the batches of all ranks, in the table of a run."""
    rows = []
    for folder in (one, two):
        with (folder / "metrics.csv").open() as file:
            rows.append(
                [{k: float(v) for k, v in row.items() if "loss" in k and v} for row in csv.DictReader(file)]
            )
    assert rows[0]
    assert all("loss" in row for row in rows[0])
    for a, b in zip(*rows, strict=True):
        assert b == pytest.approx(a, rel=1e-9, abs=1e-12)


@pytest.fixture
def store(tmp_path):
    """25 structures in two shards, and 10 for validation."""
    frames, folder = load_builtin("ethanol-gfn2/train")[:25], tmp_path / "all.lmdb"
    folder.mkdir()
    write_store(folder / "shard-00000.lmdb", frames[:12])
    write_store(folder / "shard-00001.lmdb", frames[12:])
    write_store(tmp_path / "valid.lmdb", load_builtin("ethanol-gfn2/valid")[:10])
    return folder


def streamed(store):
    return ["--data", store, "--valid", store.parent / "valid.lmdb", "--set", "data.cache_mb=0"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["in memory", "streamed from a store", "pretrain", "delta"])
def test_two_ranks_give_the_weights_of_one_process(store, tmp_path, source):
    # 25 structures in batches of 10: the third step has 5, of which one rank gets 3 and the other 2.
    data = streamed(store) if source == "streamed from a store" else DATA

    def arguments(out):
        weak = {**WEAK, "cache": tmp_path / f"labels {out}"} if source in ("pretrain", "delta") else {}
        if source == "delta":  # which samples nothing
            weak = {key: value for key, value in weak.items() if not key.startswith("pool")}
        options = [part for key, value in weak.items() for part in ("--set", f"weak.labels.{key}={value}")]
        return [*data, "--out", tmp_path / out, *(["--weak", source, *options] if weak else [])]

    output, code = finish(launch(["-c", COMMAND], arguments("one")))
    assert code == 0, output
    (first, code), (second, other) = train_with_ranks(2, arguments("two"))
    assert code == other == 0, first + second
    assert "report:" in first
    assert "training" not in second  # the first speaks for all
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.slow
def test_a_direct_head_that_energies_alone_do_not_teach_trains_on_two_ranks(tmp_path):
    few = ["--forces", "direct", "--labels", "energy", *DATA, "--out", tmp_path / "two"]
    (first, code), (second, other) = train_with_ranks(2, few)
    assert code == other == 0, first + second
    assert "report:" in first


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [["--set", "optimizer.lrr=1"], ["--labels", "stress"]])
def test_a_mistake_ends_all_ranks_with_one_clear_line(tmp_path, mistake):
    for output, code in train_with_ranks(2, [*DATA, "--out", tmp_path / "two", *mistake]):
        assert code == 2, output
        assert "Traceback" not in output
        assert mistake[1].split(".")[-1].split("=")[0] in output


@pytest.mark.slow
def test_what_the_first_rank_finds_wrong_with_the_data_ends_all_ranks(store, tmp_path):
    flip(store, load_builtin("ethanol-gfn2/train")[7])
    for output, code in train_with_ranks(2, [*streamed(store), "--out", tmp_path / "two"]):
        assert code == 2, output
        assert "Traceback" not in output
        assert "frame 7" in output
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_a_frame_that_one_rank_cannot_read_ends_the_training_of_all(store, tmp_path):
    flip(store, load_builtin("ethanol-gfn2/train")[7])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    job = launch(
        [*torchrun, sys.executable, "-c", COMMAND],
        [*streamed(store), "--out", tmp_path / "two", "--devices", 2, "--set", "model.avg_num_neighbors=8.0"],
    )
    output, code = finish(job)
    assert code != 0
    assert re.search(r"^.*all\.lmdb, frame 7: .*checksum is wrong", output, flags=re.MULTILINE), output


def flip(store, frame):
    """Damage one frame of a store."""
    word = frame.positions.tobytes()
    for shard in store.iterdir():
        content = bytearray(shard.read_bytes())
        at = content.find(word)
        if at >= 0:
            content[at] ^= 0xFF
            shard.write_bytes(content)


RANK_OF_A_LOSS = """
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch

sys.path.insert(0, sys.argv[1])
from surfaces import Morse, batch_of, molecule, potential

from pimlip_zoo.consistency import Displacement, remove_mean
from pimlip_zoo.consistency.evaluate import evaluate_step
from pimlip_zoo.consistency.loss import ConsistencyLoss
from pimlip_zoo.consistency.residuals import get_residual
from pimlip_zoo.consistency.sampling import ConsistencySampling
from pimlip_zoo.training.module import PotentialTraining


class Towards(Displacement):
    def draw(self, graph, generator, context):
        return -0.01 * remove_mean(graph.positions, graph)


rank, ranks = int(sys.argv[2]), int(sys.argv[3])
if ranks > 1:
    torch.distributed.init_process_group("gloo", init_method=sys.argv[4], rank=rank, world_size=ranks)
frames = [molecule(3 + size, size) for size in range(6)]
for index in (1, 4, 5):
    frames[index] = replace(frames[index], energy=None, forces=None)
parts = [frames] if ranks == 1 else [frames[:4], frames[4:]]
one = get_residual("taylor_augmentation")
term = ConsistencyLoss(one, ConsistencySampling(Towards(0.05, 0.1), reads=one.reads))
model = potential(Morse())
module = PotentialTraining(model, [term], None, None)
module._trainer = SimpleNamespace(
    world_size=ranks, global_step=0, accumulate_grad_batches=1, callback_metrics={}, loggers=[]
)
mean = module._mean(term(evaluate_step(model, batch_of(parts[rank], 4.6), [term])))
module.training_step(batch_of(parts[rank], 4.6), 0)
print(mean.item(), module.trainer.callback_metrics["loss"].item())
"""


@pytest.mark.slow
def test_a_weak_term_is_averaged_over_ranks_as_over_one_batch_also_where_one_has_no_label(tmp_path):
    here = str(Path(__file__).parent / "consistency")

    def start(rank, ranks):
        arguments = [here, str(rank), str(ranks), f"file://{tmp_path / 'meeting'}"]
        return subprocess.Popen(
            [sys.executable, "-c", RANK_OF_A_LOSS, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    jobs = [start(rank, ranks) for rank, ranks in ((0, 2), (1, 2), (0, 1))]
    outputs = [finish(job) for job in jobs]
    assert [code for _, code in outputs] == [0, 0, 0], outputs
    first, second, whole = (float(text.split()[-2]) for text, _ in outputs)
    assert (first + second) / 2 == pytest.approx(whole, rel=1e-12)
    assert second == 0.0 < first
    logged = [float(text.split()[-1]) for text, _ in outputs]
    assert logged == pytest.approx([whole, whole, whole], rel=1e-12)
