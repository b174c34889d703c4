"""`slurm:` a run as a Slurm job."""

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Count, Name, NonNegative, WallTime


class SlurmSection(Section):
    time: WallTime = Field("24:00:00", description="walltime")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: Count | None = Field(
        None, le=4096, description="cores per rank; default: a GPU's share of its node's, as Slurm counts them"
    )
    signal_before_limit_seconds: Count = Field(
        180, le=65535, description="seconds before the time limit to save and stop"
    )
    max_restarts_without_progress: NonNegative = Field(
        3, description="attempts in a row that may end without a new checkpoint before the run is aborted"
    )
    extra: dict[Name, str | int | bool] = Field(default={}, description="any other sbatch option: `constraint: a100`")
