"""DPO in `transformers.Trainer` with prefkit's packing collator: schedules, logging and checkpoints are Trainer's own.

    python docs/examples/hf_trainer.py --data data --model HuggingFaceTB/SmolLM2-135M-Instruct --out run

Both are needed: the collator goes in as `data_collator`, and a subclass says with `compute_loss` what the loss of its
bins is, since Trainer's own loss is that of labels. For one process. (Trainer averages gradients over processes, and
so weighs pairs of unequal batches unequally: on several GPUs take `prefkit train`, whose steps are the same on all.)
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import prefkit
from prefkit.train.logps import pair_logps
from prefkit.train.losses import sigmoid
from prefkit.train.policy import Policy, frozen_copy, ready


class PackedDPOTrainer(Trainer):
    """Trainer on bins of token trees, with a live reference."""

    # The loss is divided by the pairs of the whole step, so Trainer must not divide by its micro-batches as well.
    loss_is_scaled_for_ga = True

    def __init__(self, policy: Policy, *, beta: float, **options: Any) -> None:
        super().__init__(model=policy.model, **options)
        self.model_accepts_loss_kwargs = True  # says the same to transformers before 5
        self.policy, self.reference, self.beta = policy, frozen_copy(policy), beta

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of a step, and how many pairs they hold together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(batch["pairs"] for batch in batches)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """The part of a micro-batch in the mean over the step's pairs; in evaluation, its own mean."""
        policy = dataclasses.replace(self.policy, model=model)
        losses = [self.losses_of(policy, bin.to(policy.device)) for bin in inputs["bins"]]
        loss = torch.cat(losses).sum() / (num_items_in_batch or inputs["pairs"])
        return (loss, None) if return_outputs else loss

    def losses_of(self, policy: Policy, bin: Any) -> Tensor:
        """DPO's loss of each pair of a bin."""
        with torch.no_grad():
            reference_logps = pair_logps(self.reference.sequence_logps(bin), bin)
        return sigmoid(pair_logps(policy.sequence_logps(bin), bin), reference_logps, beta=self.beta).losses_P

    def prediction_step(self, model: nn.Module, inputs: Any, *_arguments: Any, **_options: Any) -> tuple:
        """Evaluation asks for the loss alone."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None


def make_trainer(data: Path, model: str, arguments: TrainingArguments, *, beta: float, max_length: int) -> Trainer:
    """The trainer for a data set that prefkit built."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = ready(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), dtype="float32")
    splits = load_dataset(str(data))
    return PackedDPOTrainer(
        policy,
        beta=beta,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits.get("test"),
        data_collator=prefkit.PackingCollator(tokenizer, max_length=max_length),
        processing_class=tokenizer,
    )


def main() -> None:
    """Train with Trainer's own settings for everything that is not DPO."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder that prefkit build-pairs wrote")
    parser.add_argument("--model", required=True, help="a Hugging Face model, by path or name")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--max-steps", type=int, default=-1)
    given = parser.parse_args()
    arguments = TrainingArguments(
        output_dir=str(given.out),
        per_device_train_batch_size=8,  # pairs whose bins are in memory together
        gradient_accumulation_steps=4,
        learning_rate=1e-6,
        max_steps=given.max_steps,
        logging_steps=1,
        remove_unused_columns=False,  # the collator reads prompt, chosen and rejected, which no model has
        report_to=[],
    )
    trainer = make_trainer(given.data, given.model, arguments, beta=0.1, max_length=1024)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
