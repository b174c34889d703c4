"""A run, as frozen strict models. Reading them from YAML, with line numbers, is `config_file`'s work.

Two kinds of run share most sections: `PretrainConfig` and `FinetuneConfig`. Fields whose type admits "auto" are
decided by the launcher's planner; the trainer only ever sees the resolved file, in which no "auto" is left.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

AUTO: Literal["auto"] = "auto"


def _whole(value: Any) -> Any:
    """2.5e9 is a whole number to its writer, though a float to YAML."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_flag(value: Any) -> Any:
    """True equals 1, and would pass for it among literals."""
    return str(value).lower() if isinstance(value, bool) else value


_MOST = 10**15  # of anything that is counted: no run is larger, and arithmetic stays quick
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=_MOST)]
NonNegative = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=_MOST)]
AutoCount = Annotated[Annotated[int, Field(ge=1, le=_MOST)] | Literal["auto"], BeforeValidator(_whole)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Path = Annotated[str, Field(min_length=1)]
# Minutes alone are a number to YAML.
WallTime = Annotated[
    str, BeforeValidator(lambda v: str(v) if type(v) is int else v), Field(pattern=r"^(\d+-)?\d+(:\d{1,2}){0,2}$")
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunSection(Section):
    name: Name = Field(description="the run's folder is run.directory/run.name")
    directory: Path = Field("runs", description="the folder that holds all runs")
    seed: NonNegative = Field(1337, description="seeds the weights and the order of the data")


class ModelSection(Section):
    """A decoder-only Transformer of the Llama family."""

    num_hidden_layers: Count = Field(description="Transformer blocks")
    hidden_size: Count = Field(description="width of the residual stream")
    num_attention_heads: Count
    num_key_value_heads: Count | None = Field(None, description="grouped-query attention; default: one per head")
    head_dim: Count | None = Field(None, description="default: hidden_size / num_attention_heads")
    intermediate_size: Count = Field(description="width inside the SwiGLU MLP")
    vocab_size: AutoCount = Field(AUTO, description="auto: the tokenizer's, rounded up to a multiple of 128")
    rope_theta: Positive = 10000.0
    rms_norm_eps: Positive = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: Positive = Field(0.02, description="standard deviation of the initial weights")

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        """The resolved vocabulary. Raises ValueError while it is still "auto"."""
        if self.vocab_size == AUTO:
            raise ValueError("model.vocab_size is not resolved yet")
        return self.vocab_size

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all but the embedding and the norms."""
        attention = 2 * self.hidden_size * self.head_size * (self.num_attention_heads + self.key_value_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * (attention + mlp) + self.padded_vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All trained numbers, each counted once."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        embedding = 0 if self.tie_word_embeddings else self.padded_vocab_size * self.hidden_size
        return self.matmul_parameters + embedding + norms

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward and backward FLOPs a token: 6·N_matmul + 6·L·H·S, H·S the heads' width times the sequence.

        The second term is causal attention (half of PaLM's appendix B, which counts the masked half too).
        """
        attention_width = self.num_attention_heads * self.head_size
        return 6.0 * self.matmul_parameters + 6.0 * self.num_hidden_layers * attention_width * sequence_length


class TokenizerSection(Section):
    path: Path = Field(description="a folder with tokenizer.json, or the file")


class Source(Section):
    path: Path = Field(description="a folder written by `megatrain data prepare`")
    weight: Positive = Field(1.0, description="share of the samples, relative to the other sources")


Sources = Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]


class DataSection(Section):
    sequence_length: Count = Field(description="tokens a sample; divides the block length of the prepared data")
    train: Sources
    validation: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    attend_across_documents: bool = Field(False, description="let attention cross document boundaries in a sample")
    prefetch: Count = Field(2, description="global batches read ahead")


class OptimizerSection(Section):
    name: Literal["adamw"] = "adamw"
    learning_rate: Positive = 6e-4
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="applied to matrices, not to norms")
    gradient_clipping: Annotated[float, Field(ge=0)] = Field(1.0, description="maximum gradient norm; 0 turns it off")


class ScheduleSection(Section):
    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegative = 0
    minimum_ratio: Fraction = Field(0.1, description="final learning rate over the peak")


class TrainingSection(Section):
    tokens: Count | None = Field(None, description="length of the run; or give steps")
    steps: Count | None = Field(None, description="length of the run in optimizer steps; or give tokens")
    global_batch_size: Count = Field(description="sequences an optimizer step, over all ranks")
    micro_batch_size: AutoCount = Field(AUTO, description="sequences a rank holds at once")
    precision: Literal["bf16", "fp32"] = "bf16"


class ParallelSection(Section):
    tensor_parallel: AutoCount = AUTO
    zero_stage: Annotated[Literal["auto", 0, 1, 2, 3], BeforeValidator(_no_flag)] = AUTO
    sequence_parallel: bool | Literal["auto"] = Field(AUTO, description="split norms over the tensor-parallel ranks")
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = AUTO
    compile: bool = Field(True, description="torch.compile each block")


class CheckpointSection(Section):
    every_steps: Count = 1000
    keep_last: Count = Field(3, description="older checkpoints are deleted")


class EvaluationSection(Section):
    every_steps: Count = 500
    sequences: Count = Field(256, description="validation sequences an evaluation reads, at most")


class MonitorSection(Section):
    log_every_steps: Count = 10
    tensorboard: bool = True


class ClusterSection(Section):
    hardware: Path = Field("cpu", description="a profile in configs/hardware, or the path of one")
    nodes: Count = 1
    gpus_per_node: Count = Field(1, description="ranks on each node")
    peak_tflops: Positive | Literal["auto"] = Field(AUTO, description="dense bf16 peak of a GPU; auto: the profile's")
    node_mtbf_hours: Positive = Field(6000.0, description="mean time between failures of a node; Llama 3 saw 6,100")
    storage_gbps: Positive = Field(2.0, description="GB/s that a node writes checkpoints with")


class SlurmSection(Section):
    time: WallTime = Field("24:00:00", description="walltime")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: Count | None = None
    signal_lead_seconds: Count = Field(180, description="seconds before the time limit to save and stop")
    extra: dict[Name, str | int | bool] = Field(default={}, description="any other sbatch option: `constraint: a100`")


class FinetuneSection(Section):
    """Supervised fine-tuning on prompt and response pairs; the loss is on the response only."""

    base: Path = Field(description="a run folder, or one of its checkpoints")
    train: Annotated[tuple[Path, ...], Field(strict=False, min_length=1)] = Field(description="jsonl files")
    validation: Annotated[tuple[Path, ...], Field(strict=False)] = ()
    prompt_field: str = "prompt"
    response_field: str = "response"
    sequence_length: Count | None = Field(None, description="default: the base run's")


class _Run(Section):
    run: RunSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    parallel: ParallelSection = ParallelSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    monitor: MonitorSection = MonitorSection()
    cluster: ClusterSection = ClusterSection()
    slurm: SlurmSection = SlurmSection()

    @property
    def sequence_length(self) -> int:
        raise NotImplementedError

    @property
    def tokens_per_step(self) -> int:
        return self.training.global_batch_size * self.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; a run given in tokens ends with the step that reaches them."""
        if self.training.steps is not None:
            return self.training.steps
        assert self.training.tokens is not None, "checked by problems()"
        return -(-self.training.tokens // self.tokens_per_step)


class PretrainConfig(_Run):
    model: ModelSection
    tokenizer: TokenizerSection | None = None
    data: DataSection

    @property
    def sequence_length(self) -> int:
        return self.data.sequence_length


class FinetuneConfig(_Run):
    finetune: FinetuneSection
    model: ModelSection | None = Field(None, description="taken from the base run")
    tokenizer: TokenizerSection | None = Field(None, description="taken from the base run")

    @property
    def sequence_length(self) -> int:
        if self.finetune.sequence_length is None:
            raise ValueError("finetune.sequence_length is not resolved yet")
        return self.finetune.sequence_length


Config = PretrainConfig | FinetuneConfig


class Problem(NamedTuple):
    """One mistake: where, what stood there, the rule it breaks, and what to do."""

    field: str
    value: Any
    rule: str
    fix: str = ""


def problems(config: Config) -> Iterator[Problem]:
    """Rules that hold between fields. A rule whose fields are still "auto" is the planner's to keep."""
    model, training, parallel = config.model, config.training, config.parallel
    if (training.tokens is None) == (training.steps is None):
        given = {"tokens": training.tokens, "steps": training.steps} if training.steps else None
        yield Problem("training", given, "give exactly one of tokens and steps", "The other one follows from it.")
    if isinstance(training.micro_batch_size, int) and training.global_batch_size % training.micro_batch_size:
        yield Problem(
            "training.micro_batch_size",
            training.micro_batch_size,
            f"does not divide training.global_batch_size ({training.global_batch_size})",
            f"Try {_nearest_divisor(training.global_batch_size, training.micro_batch_size)}.",
        )
    if model is not None:
        yield from _model_problems(model, parallel)
    steps = training.steps
    if steps is not None and config.schedule.name != "constant" and config.schedule.warmup_steps > steps:
        yield Problem(
            "schedule.warmup_steps",
            config.schedule.warmup_steps,
            f"is longer than the run (training.steps is {steps})",
            f"Try {max(1, steps // 20)}.",
        )


def _model_problems(model: ModelSection, parallel: ParallelSection) -> Iterator[Problem]:
    heads, kv = model.num_attention_heads, model.key_value_heads
    if model.head_dim is None and model.hidden_size % heads:
        yield Problem(
            "model.num_attention_heads",
            heads,
            f"does not divide model.hidden_size ({model.hidden_size})",
            f"Try {_nearest_divisor(model.hidden_size, heads)}, or set model.head_dim.",
        )
    elif model.head_size % 2:
        yield Problem("model.head_dim", model.head_size, "must be even: rotary embeddings turn pairs of channels")
    if heads % kv:
        yield Problem(
            "model.num_key_value_heads",
            kv,
            f"does not divide model.num_attention_heads ({heads})",
            f"Try {_nearest_divisor(heads, kv)}.",
        )
    tensor = parallel.tensor_parallel
    if isinstance(tensor, int) and kv % tensor:
        yield Problem(
            "parallel.tensor_parallel",
            tensor,
            f"does not divide {kv} key-value heads (model.num_key_value_heads)",
            f"Try {_nearest_divisor(kv, tensor)}.",
        )
    if isinstance(tensor, int) and model.intermediate_size % tensor:
        yield Problem(
            "parallel.tensor_parallel", tensor, f"does not divide model.intermediate_size ({model.intermediate_size})"
        )
    if isinstance(tensor, int) and isinstance(model.vocab_size, int) and model.vocab_size % tensor:
        yield Problem("parallel.tensor_parallel", tensor, f"does not divide model.vocab_size ({model.vocab_size})")


def _nearest_divisor(number: int, wanted: int) -> int:
    """Near the wanted one, as far as is worth looking; else 1."""
    near = range(max(1, wanted - 10_000), min(number, wanted + 10_000) + 1)
    return min((d for d in near if number % d == 0), key=lambda d: (abs(d - wanted), d), default=1)
