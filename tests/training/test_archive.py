"""Checkpoints of every format version still load, and predict what they did when they were written.

``archive/MODEL-VERSION.ckpt.xz`` were trained for ten steps by the last commit that wrote them as they are (version 1:
without checksums); ``outputs-VERSION.npz`` is what that commit predicted of two structures in float64.
"""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.training.checkpoint import FORMAT_VERSION, load_potential

ARCHIVE = Path(__file__).parent / "archive"
FILES = sorted(ARCHIVE.glob("*.ckpt.xz"))


def test_every_version_is_in_the_archive():
    assert {int(file.name.split("-")[1].split(".")[0]) for file in FILES} == set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_old_checkpoint_predicts_what_it_did(file, tmp_path):
    model, version = file.name.removesuffix(".ckpt.xz").split("-")
    (tmp_path / "best.ckpt").write_bytes(lzma.decompress(file.read_bytes()))
    potential = load_potential(tmp_path / "best.ckpt").set_dtype(torch.float64)
    with np.load(ARCHIVE / f"outputs-{version}.npz") as outputs:
        for number, frame in enumerate(load_frames("builtin:cual-emt/test@:2")):
            found = potential(frame_to_sample(frame, potential.species, potential.cutoff).graph)
            for quantity in ("energy", "forces", "virial"):
                expected = outputs[f"{model}_{number}_{quantity}"]
                value = getattr(found, quantity).detach().numpy()
                np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
