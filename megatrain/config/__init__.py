"""A run, as frozen strict models. Rules between fields are in `config_rules`, reading YAML is `config_file`'s work.

Two kinds of run share most sections: `PretrainConfig` and `FinetuneConfig`. Fields whose type admits "auto" are
decided by the launcher's planner; the trainer only ever sees the resolved file, in which no "auto" is left.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from megatrain.base.progress import Progress
from megatrain.config.types import (
    AUTO,
    MOST_TOKENS,
    WIDEST,
    AutoCount,
    Beta,
    Count,
    Fraction,
    Name,
    NonNegative,
    Path,
    Positive,
    Rate,
    Seconds,
    VocabularySize,
    WallTime,
    Weight,
    no_flag,
)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunSection(Section):
    name: Name = Field(description="the run's folder is run.directory/run.name")
    directory: Path = Field("runs", description="the folder that holds all runs")
    seed: NonNegative = Field(1337, description="seeds the weights and the order of the data")


class RopeScaling(Section):
    """Slower rotation of the slow channels, for sequences longer than a model was first trained on: as Llama 3.1."""

    factor: Annotated[float, Field(ge=1, le=1e9)] = Field(description="how much slower the slowest channels turn")
    low_freq_factor: Rate = Field(1.0, description="channels that turn less often in the original length: slowed")
    high_freq_factor: Rate = Field(4.0, description="channels that turn more often in it: as they were")
    original_max_position_embeddings: Count = Field(le=MOST_TOKENS, description="tokens of that original length")


class ModelSection(Section):
    """A decoder-only Transformer of the Llama family."""

    num_hidden_layers: Count = Field(le=1_000_000, description="Transformer blocks")
    hidden_size: Count = Field(le=WIDEST, description="width of the residual stream")
    num_attention_heads: Count = Field(le=WIDEST)
    num_key_value_heads: Count | None = Field(
        None, le=WIDEST, description="grouped-query attention; default: one per head"
    )
    head_dim: Count | None = Field(None, le=WIDEST, description="default: hidden_size / num_attention_heads")
    intermediate_size: Count = Field(le=WIDEST, description="width inside the SwiGLU MLP")
    vocab_size: VocabularySize = Field(AUTO, description="auto: the tokenizer's, rounded up to a multiple of 128")
    rope_theta: Annotated[float, Field(ge=1, le=1e15)] = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: Positive = Field(1e-5, le=1)
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
    path: Path = Field(description="a folder written by `megatrain data prepare`: here, at http(s)://… or s3://…")
    weight: Weight = Field(1.0, description="share of the samples, relative to other sources")
    format: Literal["prepared", "webdataset"] = Field(
        "prepared", description="webdataset: someone else's tar files of text, read in sequence; see docs/data.md"
    )


Sources = Annotated[tuple[Source, ...], Field(strict=False, min_length=1, max_length=64)]
Weights = Annotated[tuple[Weight, ...], Field(strict=False, min_length=1)]


class StageSection(Section):
    """A part of the curriculum: what changes from a sample on. What is not given is as in data itself."""

    from_sample: NonNegative = Field(description="counted over the whole run; a global batch has global_batch_size")
    weights: Weights | None = Field(None, description="one for each source of data.train; 0: not read here")
    sequence_length: Count | None = Field(
        None,
        le=MOST_TOKENS,
        description="each sample is cut into sequences of so many tokens; divides data.sequence_length",
    )


class ShuffleSection(Section):
    mode: Literal["windowed", "full"] = Field(
        "windowed", description="full: one permutation of all rows, for fast disks"
    )
    lanes: Count = Field(
        4096, le=1 << 20, description="windows open at once; at least the global batch mixes as well as full"
    )
    window_blocks: Count = Field(1, le=1 << 20, description="neighbouring blocks whose rows are shuffled together")


class ReadingSection(Section):
    threads: Count = Field(1, le=256, description="threads that read ahead")
    attempts: Count = Field(4, le=16, description="tries of a read before the run stops; each waits twice as long")
    timeout_seconds: Seconds = Field(30.0, description="time-out of a remote read")
    hedge_seconds: Seconds = Field(2.0, description="a remote read that takes longer is asked for a second time")
    connections: Count = Field(32, le=1024, description="remote reads at once")
    cache: Path | None = Field(None, description="folder for copies of remote files; default: in ~/.cache/megatrain")
    cache_shards: bool = Field(False, description="keep copies of whole remote shards, though their server has ranges")
    cache_mebibytes: Count = Field(65536, le=1 << 40, description="most that copies of one source take up")
    verify_blocks: bool = Field(False, description="check the hash of each block when it is first read")


class QuarantinedBlock(Section):
    """A damaged block that other rows of its source stand in for."""

    path: Path = Field(description="of the source, as in data.train")
    block: NonNegative = Field(description="its number, as the error names it")
    from_sample: NonNegative = Field(description="samples before it have seen the block")


class TransformSection(Section):
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = Field(
        description="package.module:name; called with (tokens, ends, position), gives (tokens, ends)"
    )
    workers: NonNegative = Field(0, le=1024, description="processes that call it; 0: the reading threads do")


class DataSection(Section):
    sequence_length: Count = Field(
        le=MOST_TOKENS, description="tokens a sample; divides the block length of the prepared data"
    )
    train: Sources
    validation: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    stages: Annotated[tuple[StageSection, ...], Field(strict=False, max_length=32)] = ()
    shuffle: ShuffleSection = ShuffleSection()
    attend_across_documents: bool = Field(False, description="let attention cross document boundaries in a sample")
    prefetch: Count = Field(2, le=1024, description="global batches read ahead")
    reading: ReadingSection = ReadingSection()
    quarantine: Annotated[tuple[QuarantinedBlock, ...], Field(strict=False, max_length=32)] = ()
    transform: TransformSection | None = None
    allow_pipe: bool = Field(False, description="let `pipe:` sources run their command in a shell")
    maximum_epochs: Annotated[float, Field(ge=1e-6, le=1e9)] = Field(
        16.0, description="a run that would read a source more often is refused; from 4 on it is warned of"
    )

    @property
    def sequential(self) -> bool:
        """Whether the data is someone else's tar files, which have no order but their own."""
        return any(source.format == "webdataset" for source in self.train)


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
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="length of a fine-tuning in passes over its examples; or give tokens or steps"
    )
    global_batch_size: Count = Field(le=10**9, description="sequences an optimizer step, over all ranks")
    micro_batch_size: AutoCount = Field(AUTO, description="sequences a rank holds at once")
    deterministic: bool = Field(
        False, description="the same bits at every start, also on a GPU: slower kernels that add in a fixed order"
    )
    precision: Literal["bf16", "fp32", "auto"] = Field("bf16", description="auto: what the hardware multiplies fastest")


class ParallelSection(Section):
    tensor_parallel: AutoCount = AUTO
    context_parallel: AutoCount = Field(AUTO, description="ranks that share each sequence; for long ones")
    zero_stage: Annotated[Literal["auto", 0, 1, 2, 3], BeforeValidator(no_flag)] = AUTO
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
    hang_seconds: Count = Field(
        600, le=10**6, description="no step, evaluation batch or checkpoint in so long: the rank hangs"
    )
    health_check: bool = Field(True, description="before the first step, name GPUs, links and clocks that are amiss")


class ClusterSection(Section):
    hardware: Path = Field("cpu", description="a profile in configs/hardware, or the path of one")
    nodes: Count = Field(1, le=100_000)
    gpus_per_node: Count = Field(1, le=1024, description="ranks on each node")
    peak_tflops: Rate | Literal["auto"] = Field(AUTO, description="dense bf16 peak of a GPU; auto: the profile's")
    node_mtbf_hours: Rate = Field(6000.0, description="mean time between failures of a node; Llama 3 saw 6,100")
    storage_gbps: Rate = Field(2.0, description="GB/s that a node writes checkpoints with")


class SlurmSection(Section):
    time: WallTime = Field("24:00:00", description="walltime")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: Count | None = Field(
        None, le=4096, description="cores of a rank; default: a GPU's share of its node's, as Slurm counts them"
    )
    signal_lead_seconds: Count = Field(180, le=65535, description="seconds before the time limit to save and stop")
    restarts_without_progress: NonNegative = Field(
        3, description="starts in a row that may end without a new checkpoint before the run is given up"
    )
    extra: dict[Name, str | int | bool] = Field(default={}, description="any other sbatch option: `constraint: a100`")


class FinetuneSection(Section):
    """Supervised fine-tuning on prompt and response pairs; the loss is on the response only."""

    base: Path = Field(description="a run, one of its checkpoints, or a Llama in Hugging Face's format")
    train: Annotated[tuple[Path, ...], Field(strict=False, min_length=1)] = Field(
        description="files, folders or globs of jsonl or parquet, as `data prepare` reads them"
    )
    validation: Annotated[tuple[Path, ...], Field(strict=False)] = ()
    prompt_field: Path = Field("prompt", description="dots name a field within a field: data.question")
    response_field: Path = "response"
    messages_field: Path = Field("messages", description="read with the tokenizer's chat template")
    special_tokens: Literal["parse", "text"] = Field(
        "parse", description="text: special tokens that an example spells out, such as <|im_start|>, are characters"
    )
    truncation: Literal["cut", "drop", "error"] = Field(
        "cut", description="of examples longer than a sequence: cut the prompt's start, leave them out, or refuse them"
    )
    maximum_epochs: Positive = Field(
        50.0, description="a run that would read the examples more often is refused; from 10 on it is warned of"
    )
    sequence_length: Count | None = Field(
        None, le=MOST_TOKENS, description="default: the base's; 4096 where a pretrained one has more"
    )


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
        """Optimizer steps of a run that has this batch size from its first step to its last."""
        return self.steps_left(Progress())

    def steps_left(self, progress: Progress) -> int:
        """Optimizer steps from there to the end; a run given in tokens ends with the step that reaches them."""
        if self.training.steps is not None:
            return max(0, self.training.steps - progress.step)
        if self.training.tokens is None:
            raise ValueError("training.epochs is not resolved yet")
        tokens_left = self.training.tokens - progress.samples * self.sequence_length
        return max(0, -(-tokens_left // self.tokens_per_step))


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
