"""A `transformers.Trainer` for batches of packs."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from harness_ext.errors import TrainingError, WriteError, first_line
from harness_ext.training.batches import GroupedBatches
from harness_ext.training.checkpoints import seal
from harness_ext.training.schedule import make_schedule, pause_step


class PackTrainer(Trainer):
    """A Trainer whose batches are packs; they are run one after another, and their gradients are summed.

    The loss is the cross-entropy of the label tokens, averaged over all devices and accumulation steps.
    """

    lr_scheduler: Any

    def __init__(
        self, *args: Any, batches: GroupedBatches, kept_with_checkpoints: Sequence[Path] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._batches = batches
        self._kept_with_checkpoints = kept_with_checkpoints
        self._started = time.monotonic()
        self._label_tokens = 0
        self._earlier: dict[str, Any] | None = None
        self.model_accepts_loss_kwargs = True  # makes Trainer count the label tokens of a whole step
        self._loss_shifts_labels = False

    def restore_finished(self, checkpoint: Path, *, until: float = 1.0, stopped: bool = False) -> bool:
        """Load the checkpoint if no step is to follow; `train` would still run one more after the last.

        Args:
            checkpoint: its folder.
            until: share of the planned steps that are wanted.
            stopped: the training was stopped at this checkpoint for good.

        Returns:
            Whether no step is to follow.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < pause_step(state.max_steps, until) and not stopped:
            return False
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        return True

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save as Trainer does, then seal what was saved; what cannot be written is removed.

        Raises:
            WriteError: something cannot be written; the checkpoint before is kept.
        """
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder, self._kept_with_checkpoints)
        except (OSError, RuntimeError, SafetensorError, WriteError) as error:  # torch and safetensors have their own
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise WriteError(f"a checkpoint cannot be written ({first_line(error)})") from error

    @property
    def divides_weights(self) -> bool:
        """Whether each process holds a part of the weights, so that every pass needs all processes."""
        if self.is_deepspeed_enabled:
            return int(self.accelerator.deepspeed_config["zero_optimization"]["stage"]) == 3
        return bool(self.is_fsdp_enabled)

    def _passes(self, packs: int) -> int:
        """How many passes this process runs for its packs; all processes run as many where weights are divided."""
        if not self.divides_weights:
            return packs
        return int(self.accelerator.gather(torch.tensor([packs], device=self.args.device)).max())

    def trained_weights(self) -> dict[str, torch.Tensor] | None:
        """The trained weights, put together from all processes, in the first one; None where each process has them.

        Every process has to call it.
        """
        if not self.divides_weights:
            return None
        if self.is_deepspeed_enabled:
            weights = self.deepspeed._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        else:
            weights = self.accelerator.get_state_dict(self.model)
        return dict(weights or {})

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the grouped sampler, distributed over processes by accelerate."""
        loader = DataLoader(self.train_dataset, batch_sampler=self._batches, collate_fn=self.data_collator)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """A schedule whose first step has a learning rate above 0; see `make_schedule`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = make_schedule(
                self.args.lr_scheduler_type,
                self.optimizer if optimizer is None else optimizer,
                total=num_training_steps,
                ratio=self.args.warmup_steps,
                options=self.args.lr_scheduler_kwargs,
            )
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of a step and the number of their label tokens over all devices, which is added up."""
        samples, count = super().get_batch_samples(*args, **kwargs)
        self._label_tokens += int(count or 0)
        return samples, count

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward pass over all packs of a batch; gradients are synchronised after the last pack only."""
        model.train()
        packs = inputs["packs"]
        scale = self.accelerator.num_processes / num_items_in_batch
        total = torch.zeros((), device=self.args.device)
        ends_step, passes = self.accelerator.sync_gradients, self._passes(len(packs))
        for number in range(passes):
            last = number == passes - 1
            pack, weight = (packs[number], scale) if number < len(packs) else (packs[-1], 0.0)
            self.accelerator.sync_gradients = ends_step and last  # where DeepSpeed takes a step of the optimiser
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = -pack.target_logprobs(model).sum() * weight
                self.accelerator.backward(loss)
            total += loss.detach()
        if not torch.isfinite(total):
            raise TrainingError(
                f"the training loss became {total.item()} after step {self.state.global_step}; lower --learning-rate"
            )
        return total

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Cross-entropy per label token of the held-out examples, which are divided among the devices."""
        held_out, state = self.eval_dataset or [], self.accelerator
        shard = held_out[state.process_index :: state.num_processes]
        sums = torch.zeros(2, device=self.args.device)  # negative log-likelihood, label tokens
        self.model.eval()
        size = self.args.eval_batch_size
        batches = (shard[start : start + size] for start in range(0, len(shard), size))
        packs = [pack for batch in batches for pack in self.data_collator(batch)["packs"]]
        for number in range(self._passes(len(packs))):
            counts = number < len(packs)
            pack = packs[number] if counts else self.data_collator(held_out[:1])["packs"][0]
            logprobs = pack.to(self.args.device).target_logprobs(self.model)
            sums += counts * torch.stack([-logprobs.sum(), torch.tensor(float(len(logprobs)), device=sums.device)])
        total, count = state.reduce(sums, "sum").tolist()
        metrics = {"eval_loss": total / count if count else math.nan}
        self.log(dict(metrics))
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding seconds and label tokens so far, which a resumed run needs."""
        if self._earlier is None:  # first report of this process, so earlier ones precede the resumption
            reports = [entry for entry in self.state.log_history if "seconds" in entry]
            self._earlier = reports[-1] if reports else {"seconds": 0.0, "label_tokens": 0}
        logs["seconds"] = round(self._earlier["seconds"] + time.monotonic() - self._started, 1)
        logs["label_tokens"] = self._earlier["label_tokens"] + self._label_tokens
        super().log(logs, start_time)

    def mean_loss(self) -> float:
        """Mean loss over all steps, including those before the run was resumed."""
        total, before = 0.0, 0
        for entry in self.state.log_history:
            if "loss" in entry:
                total += entry["loss"] * (entry["step"] - before)
                before = entry["step"]
        return total / before if before else math.nan

    def floating_point_ops(self, *_: Any) -> int:
        """Always 0: Trainer's estimate assumes padded batches."""
        return 0
