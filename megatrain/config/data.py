"""`data:` what a pretraining reads, in which order."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import FREE, REPORTED, Section
from megatrain.base.types import MOST_TOKENS, Count, NonNegative, Path, Seconds, Weight
from megatrain.config.validation_sets import ValidationSets, sets_of


class Source(Section):
    path: Path = Field(description="a folder written by `megatrain data prepare`: here, at http(s)://… or s3://…")
    weight: Weight = Field(1.0, description="share of the samples, relative to other sources")
    format: Literal["prepared", "webdataset"] = Field(
        "prepared", description="webdataset: someone else's tar files of text, read in sequence; see docs/data.md"
    )
    replayed: bool = Field(False, description="is the base's: continued.replay puts such sources behind a run's own")


Sources = Annotated[tuple[Source, ...], Field(strict=False, min_length=1, max_length=64)]
Weights = Annotated[tuple[Weight, ...], Field(strict=False, min_length=1)]


class PhaseSection(Section):
    """A phase of the curriculum: what changes from a sample on. What is not given is as in data itself."""

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
    streams: Count = Field(
        4096,
        le=1 << 20,
        description="windows open at once, as tf.data's interleave; at least the global batch mixes as well as full",
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
        le=MOST_TOKENS, description="tokens per sample; divides the block length of the prepared data"
    )
    train: Sources
    validation: Annotated[ValidationSets[Source], REPORTED] = Field(
        (), description="sources; or several sets, each with its own metrics: a mapping from names to such lists"
    )
    # What had not begun may change; the checkpoint says what had (data/ordering/position.py), and the ranks say more.
    phases: Annotated[tuple[PhaseSection, ...], Field(strict=False, max_length=32), FREE] = ()
    shuffle: ShuffleSection = ShuffleSection()
    attend_across_documents: bool = Field(False, description="let attention cross document boundaries in a sample")
    prefetch: Annotated[Count, FREE] = Field(2, le=1024, description="global batches read ahead")
    reading: Annotated[ReadingSection, FREE] = ReadingSection()
    quarantine: Annotated[tuple[QuarantinedBlock, ...], Field(strict=False, max_length=32), FREE] = ()
    transform: Annotated[TransformSection | None, FREE] = None
    allow_pipe: Annotated[bool, REPORTED] = Field(False, description="let `pipe:` sources run their command in a shell")
    max_epochs: Annotated[float, Field(ge=1e-6, le=1e9), REPORTED] = Field(
        16.0, description="a run that would read a source more often is refused; from 4 on it is warned of"
    )

    @property
    def validation_sets(self) -> dict[str, tuple[Source, ...]]:
        """By name; that of a list is ""."""
        return sets_of(self.validation)

    @property
    def sequential(self) -> bool:
        """Whether the data is someone else's tar files, which have no order but their own."""
        return any(source.format == "webdataset" for source in self.train)
