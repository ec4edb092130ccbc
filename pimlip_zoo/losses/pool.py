"""Structures beside the labelled ones, some of which every step looks at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch, collate


class Pool:
    """Structures beside the labelled ones, some of which every step looks at.

    Args:
        samples: with lists as wide as the training's. Whether their labels are looked at is the loss's own matter.
        batch_size: structures per step.
        key: of the configuration that named them, for the message where there are none.
    """

    def __init__(self, samples: Sequence[Batch], batch_size: int, key: str | None = None) -> None:
        if not samples:
            raise InputError(
                "there is no structure beside the labelled ones",
                key=key,
                hint="name some, or leave the loss out",
            )
        self.samples, self.batch_size = samples, min(batch_size, len(samples))

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch without repetition."""
        order = torch.randperm(len(self.samples), generator=generator)[: self.batch_size]
        return collate([self.samples[index] for index in order.tolist()])


def step_generator(seed: int, step: int) -> torch.Generator:
    """A stream that is determined by these numbers and the rank of the process.

    They are hashed: torch's generator looks at 32 bits.
    """
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    digest = hashlib.blake2b(f"{seed} {rank} {step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
