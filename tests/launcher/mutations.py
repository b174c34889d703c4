"""Configurations with mistakes in them: what people wrote by a real mistake, and random mutations of a right file."""

import copy
from typing import Any

import yaml
from hypothesis import strategies as st

RIGHT = """
run: {name: tiny, directory: runs, seed: 3}
model: {num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 128,
        vocab_size: 512, rope_theta: 10000.0, tie_word_embeddings: false}
data: {sequence_length: 128, train: [{path: data/train, weight: 1.0}]}
optimizer: {learning_rate: 3e-4, betas: [0.9, 0.95], weight_decay: 0.1}
schedule: {name: cosine, warmup_steps: 2}
training: {steps: 20, global_batch_size: 8, micro_batch_size: auto, precision: bf16}
parallel: {tensor_parallel: auto, zero_stage: auto, sequence_parallel: auto, activation_checkpointing: auto}
checkpoint: {interval_steps: 4, keep_last: 2}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 2}
slurm: {time: "12:00:00"}
"""

# (what to set, separated by spaces; the field that must be named): seen in issue trackers of systems like this one
REAL_MISTAKES = [
    ("parallel.tensor_paralel=2", "parallel.tensor_paralel"),
    ("parallel.zero_stage=4", "parallel.zero_stage"),
    ("parallel.zero_stage='3'", "parallel.zero_stage"),
    ("parallel.zero_stage=true", "parallel.zero_stage"),
    ("parallel.tensor_parallel=3", "parallel.tensor_parallel"),
    ("parallel.tensor_parallel=4", "parallel.tensor_parallel"),
    ("parallel.tensor_parallel=0", "parallel.tensor_parallel"),
    ("parallel.sequence_parallel=yes", "parallel.sequence_parallel"),
    ("parallel.activation_checkpointing=true", "parallel.activation_checkpointing"),
    ("training.global_batch_size=7 parallel.tensor_parallel=1", "training.global_batch_size"),
    ("training.micro_batch_size=3", "training.micro_batch_size"),
    ("training.micro_batch_size=16", "training.micro_batch_size"),
    ("training.precision=fp16", "training.precision"),
    ("training.precision=bfloat16", "training.precision"),
    ("training.tokens=1e9.5", "training.tokens"),
    ("training.steps=1.5", "training.steps"),
    ("training.gradient_accumulation_steps=4", "training.gradient_accumulation_steps"),
    ("training.train_batch_size=8", "training.train_batch_size"),
    ("optimizer.lr=3e-4", "optimizer.lr"),
    ("optimizer.learning_rate=-1", "optimizer.learning_rate"),
    ("optimizer.learning_rate=6e-4x", "optimizer.learning_rate"),
    ("optimizer.betas=0.9", "optimizer.betas"),
    ("optimizer.betas=[0.9]", "optimizer.betas"),
    ("training.global_batch_size=1000000000000000000000000000000", "training.global_batch_size"),
    ("training.global_batch_size=999999999 training.micro_batch_size=2", "training.micro_batch_size"),
    ("optimizer.betas=[0.9,1.0]", "optimizer.betas"),
    ("optimizer.name=adam", "optimizer.name"),
    ("schedule.warmup_steps=30", "schedule.warmup_steps"),
    ("schedule.name=cosin", "schedule.name"),
    ("model.hidden_size=63", "model.num_attention_heads"),
    ("model.num_key_value_heads=3", "model.num_key_value_heads"),
    ("model.vocab_size=none", "model.vocab_size"),
    ("model.n_layer=12", "model.n_layer"),
    ("model.head_dim=15", "model.head_dim"),
    ("data.sequence_length=0", "data.sequence_length"),
    ("data.train=[]", "data.train"),
    ("data.train=data/train", "data.train"),
    ("data.train.0.wieght=2", "data.train.0.wieght"),
    ("data.seq_len=128", "data.seq_len"),
    ("cluster.hardware=h1000", "cluster.hardware"),
    ("cluster.gpus_per_node=16 cluster.hardware=h100-sxm", "cluster.gpus_per_node"),
    ("cluster.nodes=0", "cluster.nodes"),
    ("run.name=my_run/2", "run.name"),
    ("run.name=../up", "run.name"),
    ("run.seed=-1", "run.seed"),
    ("slurm.time=tomorrow", "slurm.time"),
    ("slurm.gres=gpu:8", "slurm.gres"),
    ("checkpoint.keep_last=0", "checkpoint.keep_last"),
    ("deepspeed.zero_optimization.stage=2", "deepspeed"),
]

_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300, float("inf")),
    *(float("nan"), "", "auto", "none", "3", "3e-4", "1_000", "true", "null", "../../etc", "a b", "é", "\x00", "💥"),
    *([], [1], [[]], {}, {"a": 1}, {"path": "x"}, ["auto"], "x" * 300),
]
_ODD_KEYS = ["zero", "lr", "", "1", "tensor_paralel", "path", "name", "a.b", "é", "self", "model_config", "__class__"]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in below for path in [(*at, key), *_paths(inner, (*at, key))]]


_TREE = yaml.safe_load(RIGHT)
_PATHS = _paths(_TREE)


@st.composite
def mutated_trees(draw: st.DrawFn) -> str:
    """A right file with one to three values replaced, removed, renamed or added, as YAML."""
    tree = copy.deepcopy(_TREE)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(_PATHS))
        holder = tree
        for key in above:
            known = holder if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
            inside = key in known
            holder = holder[key] if inside else None
        if not isinstance(holder, dict):
            continue
        change = draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "add")))
        if change in ("remove", "rename"):
            value = holder.pop(last, None)
        if change == "rename":
            holder[draw(st.sampled_from(_ODD_KEYS))] = value
        elif change == "add":
            holder[draw(st.sampled_from(_ODD_KEYS))] = draw(st.sampled_from(_ODD))
        elif change == "replace":
            holder[last] = draw(st.sampled_from(_ODD) | st.integers(-4, 300) | st.floats(-10, 10))
    return yaml.safe_dump(tree, allow_unicode=True)


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    """A right file's text with a few characters removed, doubled or replaced."""
    text = RIGHT
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text) - 1))
        insert = draw(
            st.sampled_from(["", "", ":", "{", "}", "[", "]", ",", "'", '"', "&a ", "*a", "!x ", "\t", "\n", "- "])
        )
        text = text[:at] + insert + text[at + draw(st.integers(0, 2)) :]
    return text
