"""Two processes train as one does."""

import os
import socket
import subprocess
import sys

import pytest
import torch

TRAIN = [
    *(
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
    ),
    *("--data", "builtin:ethanol-gfn2/train@:25", "--valid", "builtin:ethanol-gfn2/valid@:10"),
]
COMMAND = "from pimlip_zoo.cli import main; main()"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(folder, arguments, **environment):
    command = [sys.executable, "-c", COMMAND, *TRAIN, "--out", str(folder), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def train_with_ranks(folder, ranks, arguments=()):
    """As torchrun starts them; the exit codes and outputs."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    shared |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    jobs = [
        launch(
            folder,
            ["--set", f"trainer.devices={ranks}", *arguments],
            **shared,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(ranks)
    ]
    return [(job.communicate(timeout=300)[0].decode(), job.returncode) for job in jobs]


@pytest.mark.slow
def test_two_ranks_give_the_weights_of_one_process(tmp_path):
    # 25 structures in batches of 10: the third step has 5, of which one rank gets 3 and the other 2.
    alone = launch(tmp_path / "one", [])
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, output.decode()
    for output, code in train_with_ranks(tmp_path / "two", 2):
        assert code == 0, output
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.slow
def test_a_mistake_ends_all_ranks_with_one_clear_line(tmp_path):
    for output, code in train_with_ranks(tmp_path / "two", 2, ["--set", "optimizer.lrr=1"]):
        assert code == 2, output
        assert "Traceback" not in output
        assert "lrr" in output
