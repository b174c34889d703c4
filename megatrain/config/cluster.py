"""`cluster:` the machines of a run."""

from typing import Literal

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import AUTO, Count, Path, Rate


class ClusterSection(Section):
    hardware: Path = Field("cpu", description="a profile in configs/hardware, or the path of one")
    nodes: Count = Field(1, le=100_000)
    gpus_per_node: Count = Field(1, le=1024, description="ranks on each node")
    peak_tflops: Rate | Literal["auto"] = Field(AUTO, description="dense bf16 peak of a GPU; auto: the profile's")
    node_mtbf_hours: Rate = Field(6000.0, description="mean time between failures of a node; Llama 3 saw 6,100")
    storage_gbps: Rate = Field(2.0, description="GB/s that a node writes checkpoints with")
