"""A run, as frozen strict models, a file for each section.

Rules between fields are in `rules`, reading YAML is `file`'s work, what older versions called a field is in `migrate`.
"""

from megatrain.base.types import AUTO
from megatrain.config.checkpoint import CheckpointSection
from megatrain.config.cluster import ClusterSection
from megatrain.config.data import (
    DataSection,
    PhaseSection,
    QuarantinedBlock,
    ReadingSection,
    ShuffleSection,
    Source,
    TransformSection,
)
from megatrain.config.evaluation import EvaluationSection
from megatrain.config.finetune import FinetuneSection
from megatrain.config.monitor import MonitorSection
from megatrain.config.parallel import ParallelSection
from megatrain.config.run import RunSection
from megatrain.config.runs import Config, FinetuneConfig, PretrainConfig
from megatrain.config.slurm import SlurmSection
from megatrain.config.tokenizer import TokenizerSection
from megatrain.config.training import TrainingSection
from megatrain.model.architecture import ModelSection
from megatrain.optim.registry import OptimizerSection
from megatrain.schedule.registry import ScheduleSection

__all__ = [
    "AUTO",
    "CheckpointSection",
    "ClusterSection",
    "Config",
    "DataSection",
    "EvaluationSection",
    "FinetuneConfig",
    "FinetuneSection",
    "ModelSection",
    "MonitorSection",
    "OptimizerSection",
    "ParallelSection",
    "PhaseSection",
    "PretrainConfig",
    "QuarantinedBlock",
    "ReadingSection",
    "RunSection",
    "ScheduleSection",
    "ShuffleSection",
    "SlurmSection",
    "Source",
    "TokenizerSection",
    "TrainingSection",
    "TransformSection",
]
