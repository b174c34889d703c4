"""A resolved run -> what DeepSpeed is given. The only writer of DeepSpeed configuration."""

from typing import Any

from launcher.planning.zero import live_parameters, prefetch_bucket, reduce_bucket, reuse_distance
from megatrain.config.regularization import passes_of
from megatrain.config.resolved import ResolvedRun
from megatrain.config.training import storage_precision


def deepspeed_config(config: ResolvedRun, world_size: int) -> dict[str, Any]:
    """The `ds_config.json` of a run on `world_size` ranks.

    Raises:
        ValueError: the batch does not divide over the ranks.
    """
    training, parallel = config.training, config.parallel
    tensor, context, micro_batch = parallel.tensor_parallel, parallel.context_parallel, training.micro_batch_size
    data_parallel = world_size // (tensor * context)
    accumulation, rest = divmod(training.global_batch_size, micro_batch * data_parallel)
    if rest:
        raise ValueError(
            f"training.global_batch_size ({training.global_batch_size}) is not a multiple of micro_batch_size × "
            f"data-parallel ranks ({micro_batch} × {data_parallel})"
        )
    passes = passes_of(config).accumulated  # of a micro-batch; DeepSpeed takes each for one of its own
    settings: dict[str, Any] = {
        # context-parallel ranks share their sequences; DeepSpeed, which counts replicas, counts each sequence for each
        "train_batch_size": training.global_batch_size * context * passes,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation * passes,
        # without ZeRO the trainer clips: DeepSpeed's norm is wrong there under tensor parallelism (train/engine.py)
        "gradient_clipping": config.optimizer.gradient_clipping if parallel.zero_stage else 0.0,
        "zero_optimization": _zero(config, tensor),
        "zero_allow_untested_optimizer": True,  # any whose state is per element: train/engine.py looks
        "zero_force_ds_cpu_optimizer": False,  # torch's own run on a host as well
        "steps_per_print": 1_000_000_000,  # megatrain reports; DeepSpeed need not
    }
    if storage_precision(training.precision) == "bf16":
        settings["bf16"] = {"enabled": True}
        if parallel.zero_stage == 2:
            # the norm tells; DeepSpeed would look through all gradients, and have the host wait for the answer
            settings["bf16"]["check_grad_overflow"] = False
        if parallel.zero_stage != 0:  # DeepSpeed has no fp32 accumulation without ZeRO
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _zero(config: ResolvedRun, tensor_parallel: int) -> dict[str, Any]:
    stage = config.parallel.zero_stage
    settings: dict[str, Any] = {"stage": stage}
    if config.parallel.offload_optimizer == "cpu":
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if stage != 0:
        settings["reduce_bucket_size"] = reduce_bucket(config.model, tensor_parallel, stage)
    if stage == 3:
        settings["stage3_prefetch_bucket_size"] = prefetch_bucket(config.model, tensor_parallel)
        settings["stage3_max_live_parameters"] = live_parameters(config.model, tensor_parallel)
        settings["stage3_max_reuse_distance"] = reuse_distance(config.model, tensor_parallel)
        near = config.parallel.zero_hpz_partition_size
        if isinstance(near, int) and near > 1:
            settings["zero_hpz_partition_size"] = near
    return settings
