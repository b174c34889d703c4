"""The DeepSpeed configuration: golden for each layout, and every key known to the pinned DeepSpeed."""

import json

import pytest

from launcher.deepspeed_config import deepspeed_config
from launcher.planning.plan import make_plan, resolve

COMMON = {
    "train_batch_size": 8,
    "steps_per_print": 1_000_000_000,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
BF16 = {"bf16": {"enabled": True}}
UNCHECKED = {"bf16": {"enabled": True, "check_grad_overflow": False}}  # the norm tells
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
GOLDEN = {
    ("bf16", 0, 1): {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, **BF16},
    ("bf16", 1, 1): {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, **BF16, **FP32_SUMS},
    ("bf16", 2, 2): {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, **UNCHECKED, **FP32_SUMS},
    ("bf16", 3, 1): {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, **BF16, **FP32_SUMS},
    ("fp32", 1, 2): {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4},
    ("fp32", 3, 1): {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2},
}
# a quarter of the parameters of a rank: buckets are allocated whole
ZERO = {
    (0, 1): {"stage": 0},
    (1, 1): {"stage": 1, "reduce_bucket_size": 34896},
    (1, 2): {"stage": 1, "reduce_bucket_size": 17488},
    (2, 2): {"stage": 2, "reduce_bucket_size": 17488},
    (3, 1): {  # a block, and a little more: one is gathered and reduced as a whole
        "stage": 3,
        "reduce_bucket_size": 37024,
        "stage3_prefetch_bucket_size": 40726,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    },
}


def settings(tiny, precision, stage, tensor, ranks=2):
    config = tiny(
        f"cluster.gpus_per_node={ranks}",
        f"training.precision={precision}",
        f"parallel.zero_stage={stage}",
        f"parallel.tensor_parallel={tensor}",
        "training.micro_batch_size=2",
    )
    return deepspeed_config(resolve(config, make_plan(config).chosen), ranks)


@pytest.mark.parametrize("layout", GOLDEN, ids=lambda layout: "-".join(map(str, layout)))
def test_golden(tiny, layout):
    precision, stage, tensor = layout
    expected = COMMON | GOLDEN[layout] | {"zero_optimization": ZERO[stage, tensor]}
    expected["gradient_clipping"] = 1.0 if stage else 0.0  # without ZeRO the trainer clips
    assert settings(tiny, precision, stage, tensor) == expected


@pytest.mark.parametrize("layout", GOLDEN, ids=lambda layout: "-".join(map(str, layout)))
def test_deepspeed_takes_every_key(tiny, layout, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    precision, stage, tensor = layout
    # one data-parallel rank: what DeepSpeed's parser assumes outside of a process group
    written = settings(tiny, precision, stage, tensor, ranks=tensor)
    (tmp_path / "ds_config.json").write_text(json.dumps(written), encoding="utf-8")
    read = DeepSpeedConfig(str(tmp_path / "ds_config.json"))
    assert read.train_batch_size == 8
    assert read.train_micro_batch_size_per_gpu == 2
    assert read.gradient_accumulation_steps == written["gradient_accumulation_steps"]
    assert read.zero_optimization_stage == stage
    assert read.gradient_clipping == written["gradient_clipping"]
    assert read.bfloat16_config.enabled == (precision == "bf16")
    assert read.grad_accum_dtype == ("fp32" if precision == "bf16" and stage else None)
    accepted = {name for field, info in DeepSpeedZeroConfig.model_fields.items() for name in (field, info.alias)}
    assert set(written["zero_optimization"]) <= accepted
    zero = read.zero_config.model_dump(by_alias=True)
    assert {key: zero[key] for key in written["zero_optimization"]} == written["zero_optimization"]


@pytest.mark.parametrize("layout", GOLDEN, ids=lambda layout: "-".join(map(str, layout)))
def test_deepspeed_looks_at_every_key(tiny, layout, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    class Watched(dict):
        def __getitem__(self, key):
            seen.add(key)
            return super().__getitem__(key)

        def get(self, key, default=None):
            seen.add(key)
            return super().get(key, default)

    seen = set()
    precision, stage, tensor = layout
    written = settings(tiny, precision, stage, tensor, ranks=tensor)
    DeepSpeedConfig(Watched(written))
    assert set(written) <= seen


def test_a_batch_that_does_not_divide_is_a_defect(tiny):
    config = tiny("training.micro_batch_size=2")
    resolved = resolve(config, make_plan(config).chosen)
    with pytest.raises(ValueError, match="not a multiple"):
        deepspeed_config(resolved, 3)
