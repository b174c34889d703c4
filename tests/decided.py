"""What a plan decides of a run, for tests that need a run's own config.yaml and no plan."""

DECIDED = (
    "training.micro_batch_size=1",
    "parallel.tensor_parallel=1",
    "parallel.context_parallel=1",
    "parallel.zero_stage=1",
    "parallel.sequence_parallel=false",
    "parallel.activation_checkpointing=none",
    "cluster.peak_tflops=1.0",
)
