"""The same examples, weights and settings give the losses and gradient norms of Hugging Face's Trainer over 20 steps:
all weights of a Llama, classifiers, and LoRA by peft."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatrain.base.registry import load_object
from megatrain.config.resolved import ResolvedFinetune
from megatrain.huggingface.names import wholes
from megatrain.model.initialization import initial_weight
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from megatrain.tasks.base import DataShare
from megatrain.tasks.registry import TASKS
from tests.distributed import classifiers
from tests.distributed.classifiers import LABELS, write_reviews
from tests.distributed.lora import LORA, base_of, config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import examples_of, reported
from tests.distributed.test_lora import peft_of

pytestmark = pytest.mark.distributed

STEPS = 20
COMMON = (f"training.steps={STEPS}", "evaluation.interval_steps=100", "checkpoint.interval_steps=100")
RATE = "optimizer.learning_rate=1e-3"
IGNORED = -100


def trainer_losses(model: nn.Module, config: ResolvedFinetune, batches: list[dict[str, Tensor]]) -> list[dict]:
    """What Trainer logs of each step; it takes a batch a step, as they come."""
    from transformers import Trainer, TrainingArguments

    section, smoothing = config.optimizer, getattr(config.task, "label_smoothing", 0.0)
    arguments = TrainingArguments(
        output_dir="trainer", max_steps=len(batches), per_device_train_batch_size=1, use_cpu=True, report_to=[],
        save_strategy="no", logging_steps=1, disable_tqdm=True, lr_scheduler_type="constant", optim="adamw_torch",
        learning_rate=section.learning_rate, weight_decay=section.weight_decay, adam_beta1=section.betas[0],
        adam_beta2=section.betas[1], adam_epsilon=section.eps, max_grad_norm=section.gradient_clipping,
        label_smoothing_factor=smoothing, train_sampling_strategy="sequential", remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=batches, data_collator=lambda items: items[0])  # type: ignore[arg-type]
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def batches_of(config: ResolvedFinetune) -> Iterator[dict[str, Tensor]]:
    """The run's examples, step by step, as Trainer takes them: padded, and a mask. Labels of tokens stand at the tokens
    themselves, which transformers shifts; those of texts are one number a text."""
    loader = load_object(TASKS.get(config.task.name).task)(config).loader(DataShare(rank=0, size=1))
    for _ in range(STEPS):
        examples = list(itertools.chain.from_iterable(map(examples_of, loader.next().micro_batches)))
        longest = max(len(ids) for ids, _ in examples)
        ids, mask, labels = (torch.full((len(examples), longest), fill) for fill in (0, 0, IGNORED))
        for number, (tokens, targets) in enumerate(examples):
            ids[number, : len(tokens)] = tokens
            mask[number, : len(tokens)] = 1
            labels[number, 1 : len(tokens)] = targets[:-1]
        if config.task.classes:
            labels = torch.stack([targets[targets != IGNORED][0] for _, targets in examples])
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def compare(run: RunDir, model: nn.Module) -> None:
    config, found = load_run(run), reported(run)
    assert isinstance(config, ResolvedFinetune)
    theirs = trainer_losses(model, config, list(batches_of(config)))
    assert len(theirs) == STEPS
    for step, entry in enumerate(theirs, start=1):
        assert found[step]["loss"] == pytest.approx(float(entry["loss"]), rel=1e-5), step
        assert found[step]["grad_norm"] == pytest.approx(float(entry["grad_norm"]), rel=1e-5), step
    assert found[STEPS]["loss"] < 0.9 * found[1]["loss"]


def test_all_weights_of_a_llama(ranks: RankPool, here: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = base_of(here)
    run = start(ranks, config_of("trainer-llama", base), RATE, *COMMON)
    compare(run, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))


@pytest.mark.parametrize("family", ["bert", pytest.param("llama", marks=pytest.mark.full)])
def test_a_classifier(ranks: RankPool, here: Path, family: str) -> None:
    write_reviews(here / "reviews.jsonl", 300, seed=1)
    write_reviews(here / "held-out.jsonl", 61, seed=2)
    base = base_of(here, family)
    run = start(ranks, classifiers.config_of(f"trainer-{family}-classifier", base), RATE, *COMMON)
    compare(run, classifier_of(base, run))


def classifier_of(base: str, run: RunDir) -> nn.Module:
    """Of transformers, with what the base lacks as megatrain draws it."""
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {"num_labels": len(LABELS), "pad_token_id": 0, "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(base, **options)
    config, parameters = load_run(run), dict(model.named_parameters())
    with torch.no_grad():
        for whole in wholes(config.model).values():
            row = whole.rows[0]
            if row.name.startswith(("head.", "pooler.")):
                parameters[row.theirs.name].copy_(initial_weight(row, config.run.seed)[: row.theirs.rows])
    return model


def test_lora_by_peft(ranks: RankPool, here: Path) -> None:
    base = base_of(here)
    run = start(ranks, config_of("trainer-lora", base), LORA, *COMMON)
    config = load_run(run)
    assert isinstance(config, ResolvedFinetune)
    compare(run, peft_of(base, config))
