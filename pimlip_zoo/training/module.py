"""One training step, one validation step: what Lightning runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from pimlip_zoo.consistency.evaluate import evaluate_step
from pimlip_zoo.datasets.device_neighbours import BatchWithoutEdges
from pimlip_zoo.errors import InputError
from pimlip_zoo.graph import Batch, Predictions
from pimlip_zoo.losses.base import LossTerm, LossValue, Step
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.callbacks import columns_of
from pimlip_zoo.training.checkpoint import KEY, LEVELS, describe
from pimlip_zoo.training.low_rank import Adapters
from pimlip_zoo.training.metrics import ErrorStatistics
from pimlip_zoo.training.present import Whole

POTENTIAL, WORKING, ADAPTERS = "potential.", "working_state", "low_rank_updates"
"""Of the names of a checkpoint: weights of the potential, the potential as it is trained, updates of its maps."""

LOGGED_EVERY = 50
"""Steps between the losses that loggers get."""


class TermOfStep(NamedTuple):
    """What a term adds to the loss of a step: the product."""

    value: Tensor
    """Its mean."""
    weight: float
    factor: float
    """Of its schedule."""


@dataclass(frozen=True)
class LatePhase:
    """Other weights of the loss terms for the end of a run."""

    begun: Callable[[int], bool]
    """Whether they hold at a step."""
    weights: Mapping[str, float]
    """By the terms' names; a term that is not named keeps its weight."""


class PotentialTraining(pl.LightningModule):
    """Trains a potential on a sum of loss terms.

    Args:
        potential: what is trained.
        terms: the loss; names must differ.
        optimizer: from the trainable parameters.
        learning_rate_factor: by step, multiplies the optimiser's learning rates.
        late: other weights of the terms for the end of the run.
        adapters: of the potential's maps, which are trained in their place.
        whole: what the potential was cut down from: checkpoints have all of its species.
        forces: some term needs forces.
        virial: some term needs the virial.
        link: makes the neighbour lists of batches that come without them.
        summary: plain values saved with every checkpoint, such as the configuration.
    """

    def __init__(
        self,
        potential: Potential,
        terms: Sequence[LossTerm],
        optimizer: Callable[[Potential], torch.optim.Optimizer],
        learning_rate_factor: Callable[[int], float],
        *,
        late: LatePhase | None = None,
        adapters: Adapters | None = None,
        whole: Whole | None = None,
        forces: bool = True,
        virial: bool = False,
        link: Callable[[BatchWithoutEdges], Batch] | None = None,
        summary: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.potential = potential
        self.terms = nn.ModuleList(terms)
        self._optimizer = optimizer
        self._factor = learning_rate_factor
        self._late = late
        self._adapters, self._whole = adapters, whole
        self._forces, self._virial = forces, virial
        self._link = link
        self._summary = summary or {}
        self._rates: list[float] = []
        self.errors = ErrorStatistics(potential.species)

    @property
    def losses(self) -> list[LossTerm]:
        """The terms of the loss."""
        return [cast("LossTerm", module) for module in self.terms]

    def configure_optimizers(self) -> Any:
        """The optimiser, its learning rate scheduled by step."""
        if self._adapters is not None:
            self._adapters.to(self.device)
        optimizer = self._optimizer(self.potential)
        of_terms = [parameter for parameter in self.terms.parameters() if parameter.requires_grad]
        if of_terms:
            optimizer.add_param_group({"params": of_terms})
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        self._rates = [float(rate) for rate in scheduler.base_lrs]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Take the learning rates of the configuration, and its schedule, rather than those of the checkpoint."""
        for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
            scheduler.base_lrs = list(self._rates)
            now = [rate * self._factor(scheduler.last_epoch) for rate in self._rates]
            for group, rate, first in zip(scheduler.optimizer.param_groups, now, self._rates, strict=True):
                group["lr"], group["initial_lr"] = rate, first

    def loss(self, batch: Batch, batch_idx: int = 0) -> tuple[Tensor, dict[str, TermOfStep], Predictions]:
        """Total loss, what each term adds to it, and the predictions."""
        step = self._step(batch_idx)
        evaluated = evaluate_step(
            self.potential, batch, self.losses, step, forces=self._forces, virial=self._virial
        )
        total = evaluated.predictions.energy.new_zeros(())
        parts: dict[str, TermOfStep] = {}
        late = self._late is not None and self._trainer is not None and self._late.begun(self.global_step)
        weights = self._late.weights if late and self._late is not None else {}
        for term in self.losses:
            value, factor = self._mean(term(evaluated)), term.factor(step)
            weight = weights.get(term.name, term.weight)
            parts[term.name] = TermOfStep(value.detach(), weight, factor)
            total = total + weight * factor * value
        return total, parts, evaluated.predictions

    def _step(self, batch_idx: int) -> Step:
        """How far the training is; gradients of several batches make an optimiser step."""
        if self._trainer is None:
            return Step()
        number, batches = self.global_step, self.trainer.accumulate_grad_batches
        return Step(number, number * batches + batch_idx % batches)

    def _mean(self, value: LossValue) -> Tensor:
        """The mean over the batches of all ranks, scaled so that their averaged gradient is its gradient."""
        if self._trainer is None or self.trainer.world_size == 1:
            return value.mean()
        count = value.count.detach().clone()
        torch.distributed.all_reduce(count)
        return value.total * self.trainer.world_size / count.clamp_min(1e-12)

    def _over_ranks(self, values: Sequence[Tensor]) -> list[Tensor]:
        """What one rank with the batches of all would have: the means of what :meth:`_mean` gives."""
        if self._trainer is None or self.trainer.world_size == 1:
            return list(values)
        together = torch.stack([value.detach().to(torch.float64) for value in values])
        torch.distributed.all_reduce(together)
        return list(together / self.trainer.world_size)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what a worker of the loader found; see :class:`~pimlip_zoo.training.data.SampleList`."""
        if isinstance(batch, InputError):
            raise batch
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Unpack a batch from a worker; make the neighbour lists of one that came without."""
        return batch.linked(self._link)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        total, parts, _ = self.loss(batch, batch_idx)
        loss, *values = self._over_ranks([total.detach(), *(part.value for part in parts.values())])
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss became {float(loss)} at step {self.global_step}",
                hint="lower optimizer.lr, or look for outliers with `pimlip-zoo data check`",
            )
        shown: dict[str, Tensor] = {"loss": loss}
        for (name, part), value in zip(parts.items(), values, strict=True):
            numbers = (value, torch.tensor(part.weight), torch.tensor(part.factor))
            shown.update(zip(columns_of(name), numbers, strict=True))
        self._show(shown)
        return total

    def _show(self, values: dict[str, Tensor]) -> None:
        """Let callbacks see the losses of this step, and loggers now and then.

        Lightning's ``log`` copies its records of every value in every step, which takes longer than the optimiser.
        """
        if self._trainer is None:
            return
        self.trainer.callback_metrics.update(values)
        if (self.global_step + 1) % LOGGED_EVERY == 0:
            for logger in self.trainer.loggers:
                logger.log_metrics({name: float(value) for name, value in values.items()}, self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.errors = ErrorStatistics(self.potential.species)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the errors."""
        # As the potential is used afterwards: without products of low precision.
        with torch.autocast(self.device.type, enabled=False):
            predictions = self.potential(batch.graph, forces=True, virial=self._virial)
        self.errors.update(batch, predictions)

    def on_validation_epoch_end(self) -> None:
        """Log the errors; ``valid_score`` is what best.ckpt is chosen by."""
        names = {"energy_per_atom": "energy", "forces": "forces", "stress": "stress"}
        score = 0.0
        for quantity, short in names.items():
            errors = self.errors.result(quantity)
            if errors is None:
                continue
            for kind, value in errors.items():
                self.log(f"valid_{short}_{kind}", value, sync_dist=True)
            # Forces decide where there are any; energies break ties and decide alone otherwise.
            score += {"energy": 1.0, "forces": 1.0, "stress": 1.0}[short] * errors["rmse"]
        self.log("valid_score", score, sync_dist=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Before gradients are clipped: those of maps become those of their factors."""
        if self._adapters is not None:
            self._adapters.project()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; the factors that it moved are put into the potential."""
        super().optimizer_step(*args, **kwargs)
        if self._adapters is not None:
            self._adapters.merge()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what was written with other losses, or by a version that kept them in another way."""
        if WORKING in checkpoint:
            others = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(POTENTIAL)}
            checkpoint["state_dict"] = {**checkpoint[WORKING], **others}
        if (self._adapters is None) != (ADAPTERS not in checkpoint):
            raise InputError(
                "the checkpoint was written with another choice of low-rank updates",
                key="finetune.lora",
                hint="resume with that of the run",
            )
        if self._adapters is not None:
            self._adapters.load(checkpoint[ADAPTERS])
        own = {f"terms.{key}" for key in self.terms.state_dict()}
        written = {key for key in checkpoint["state_dict"] if key.split(".", 1)[0] == "terms"}
        for key in {key for key in written - own if key.endswith("._extra_state")}:
            written.remove(key)  # of schedules that followed the error, by earlier versions
            del checkpoint["state_dict"][key]
        if own != written:
            raise InputError(
                "the checkpoint was written with other losses, or by an earlier version",
                key="weak",
                hint="resume with the losses of the run, or begin a run from its weights with --from RUN",
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what makes the potential into the file: with all of its species, and the updates of its maps merged."""
        potential = self.potential
        if self._whole is not None:
            potential, state = self._whole.potential, checkpoint["state_dict"]
            # As it was, too: what is multiplied and divided again by a factor is not the same to the last bit.
            working = {name: value for name, value in state.items() if name.startswith(POTENTIAL)}
            weights = {name.removeprefix(POTENTIAL): value for name, value in working.items()}
            merged = self._whole.weights(self.potential, weights)
            checkpoint[WORKING] = working
            checkpoint["state_dict"] = {
                **state,
                **{POTENTIAL + name: value for name, value in merged.items()},
            }
        if levels := self._levels(checkpoint["state_dict"]):
            checkpoint[LEVELS] = levels
        if self._adapters is not None:
            checkpoint[ADAPTERS] = self._adapters.state()
        checkpoint[KEY] = {**describe(potential), "summary": self._summary}

    def _levels(self, state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """What further levels of theory have of their own, by the names of the potential's parameters."""
        found = {}
        for place, term in enumerate(self.losses):
            for level, names in term.levels().items():
                weights = {name: state[f"terms.{place}.{own}"] for name, own in names.items()}
                if self._whole is not None:  # what is saved has all of its species
                    others = self.potential.state_dict()
                    merged = self._whole.weights(self.potential, {**others, **weights})
                    weights = {name: merged[name] for name in names}
                found[level] = weights
        return found
