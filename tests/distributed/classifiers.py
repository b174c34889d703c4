"""Tiny models of transformers to make classifiers of, and texts to make them of."""

import json
import random
from pathlib import Path
from typing import Any

import torch

from megatrain.data.text.tokenizer import Tokenizer, write_tokenizer

LABELS = ("bad", "fair", "good")
SEQUENCE = 48
_WORDS = ["the", "of", "and", "to", "in"]
_MARKS = {"bad": "fatal", "fair": "fine", "good": "great"}
_BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 384,
    "initializer_range": 0.05, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}),
    "bert": ("bert", _BERT),
}


def make_base(folder: Path, family: str, tokenizer: Path) -> Path:
    """A language model as transformers saves it, with random weights."""
    import transformers

    model_type, fields = FAMILIES[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES | fields)
    auto = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    write_tokenizer(Tokenizer.load(tokenizer), folder)
    return folder


def write_reviews(file: Path, count: int, *, seed: int, pairs: bool = False) -> Path:
    """Texts of several lengths, in which one word tells the label; good ones are the most."""
    chance = random.Random(seed)

    def text(words: int) -> list[str]:
        return chance.choices(_WORDS, k=words)

    rows = []
    for _ in range(count):
        label = chance.choices(LABELS, weights=[1, 1, 2])[0]
        words = text(chance.randint(2, 8))
        words.insert(chance.randint(0, len(words)), _MARKS[label])
        rows.append({"text": " ".join(words), "label": label} | ({"more": " ".join(text(3))} if pairs else {}))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


CONFIG = """
run: {name: NAME, seed: 3}
finetune: {base: BASE, train: [reviews.jsonl], validation: [held-out.jsonl], sequence_length: 48}
task: {name: sequence_classification, label_smoothing: 0.1}
training: {steps: 6, global_batch_size: 4, precision: fp32}
optimizer: {learning_rate: 3.0e-3}
schedule: {name: constant, warmup_steps: 0}
evaluation: {interval_steps: 2}
parallel: {compile: false}
checkpoint: {interval_steps: 3}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""


def config_of(name: str, base: str) -> str:
    return CONFIG.replace("NAME", name).replace("BASE", base)


def write_tagged(file: Path, count: int, *, seed: int) -> Path:
    """Sentences in some of which a place of two or three words stands, or a name of one."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        pairs = [(word, "O") for word in chance.choices(_WORDS, k=chance.randint(2, 7))]
        place = ["great", "fatal", "lake"][: chance.randint(2, 3)]
        found = [(word, f"{'I' if number else 'B'}-LOC") for number, word in enumerate(place)]
        at = chance.randint(0, len(pairs))
        pairs[at:at] = chance.choice([found, [("fine", "B-PER")], []])
        rows.append({"tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
