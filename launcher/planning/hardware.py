"""What a rank runs on: the profiles in configs/hardware, as strict models."""

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.installation import shipped
from launcher.planning.processor import rates
from megatrain.base.errors import ConfigError
from megatrain.base.files import read_bytes
from megatrain.base.types import Rate

PROFILES = "configs/hardware"
GIB = 2**30
_MOST_BYTES = 1 << 16  # of a profile: PyYAML takes minutes for megabytes


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Link(_Strict):
    """A connection between ranks, as a collective sees it."""

    bandwidth: Rate = Field(description="GB/s of each rank: bytes it sends, over time")
    latency: Rate = Field(description="microseconds of one collective's hop")


class Host(_Strict):
    """What the GPUs of a node share, for what is offloaded to it."""

    memory_gib: Rate = Field(description="of a node")
    memory_bandwidth: Rate = Field(description="GB/s of a node, as a vectorised update over all of its cores sees it")
    link: Rate = Field(description="GB/s between a GPU and pinned memory, while all GPUs of a node copy")


HalfSize = Annotated[float, Field(ge=0, le=1e9)]
Efficiency = Annotated[float, Field(gt=0, le=1)]


class Accelerator(_Strict):
    """One rank's device. A profile states these numbers for one GPU."""

    device: Literal["cuda", "rocm"]
    memory_gib: Rate = Field(description="what a process can allocate, not what the box says")
    bf16_tflops: Rate = Field(description="dense peak on paper: the divisor of MFU")
    bf16_reachable_tflops: Rate = Field(description="the most that a large matmul reaches")
    fp32_tflops: Rate = Field(description="the most that fp32 matmuls reach (TF32 off)")
    fp8_tflops: Rate | None = Field(None, description="dense peak on paper; absent: no fp8")
    fp8_reachable_tflops: Rate | None = None
    training_efficiency: Efficiency = Field(
        description="what a training loop keeps of the reachable rate: clocks under load, gaps between kernels"
    )
    matmul_half_size: HalfSize = Field(100.0, description="a matmul dimension of this size alone halves the rate")
    memory_bandwidth: Rate = Field(description="GB/s")
    link: Link = Field(description="inside a node")
    network: Link = Field(description="between nodes")
    gpus_per_node: int = Field(ge=1, le=1024)
    host: Host | None = Field(None, description="absent: nothing can be offloaded to it")


class Processor(_Strict):
    """A node without GPUs: its cores and memory are shared by the ranks on it."""

    device: Literal["cpu"]
    cores_per_node: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"] = Field(description="auto: this machine's")
    memory_gib: Rate | Literal["auto"] = Field(description="of a node; auto: of this machine")
    bf16_tflops_per_core: Rate | Literal["auto"] = Field(description="auto: measured on this machine")
    fp32_tflops_per_core: Rate | Literal["auto"] = Field(description="likewise")
    training_efficiency: Efficiency
    matmul_half_size: HalfSize = 100.0
    memory_bandwidth: Rate = Field(description="GB/s of a node")
    link: Link
    network: Link


class Hardware(_Strict):
    """What one rank has: the same numbers for a GPU, and for a rank's share of a CPU node."""

    name: str
    device: Literal["cuda", "rocm", "cpu"]
    memory_bytes: int
    peak_tflops: float  # dense bf16, on paper; of a CPU, the most that its cores multiply in either precision
    bf16_tflops: float  # reachable
    fp32_tflops: float
    fp8_tflops: float | None  # None: it cannot
    training_efficiency: float
    matmul_half_size: float
    memory_bandwidth: float  # GB/s
    link: Link
    network: Link
    max_ranks_per_node: int | None  # None: no limit but sense
    host: Host | None = None  # a rank's share; None: not known, or where the ranks themselves run

    def tflops(self, precision: str) -> float:
        """What a large matmul reaches, in TFLOP/s."""
        rates = {"bf16": self.bf16_tflops, "fp32": self.fp32_tflops, "fp8": self.fp8_tflops}
        return rates[precision] or self.fp32_tflops  # fp8 is emulated in fp32 where there is none


def load_hardware(name: str, ranks_per_node: int) -> Hardware:
    """A rank's share of a profile: a name in configs/hardware, or the path of a YAML file.

    Raises:
        ConfigError: there is no such profile, or the file holds mistakes.
    """
    path = _find(name)
    try:
        data = yaml.safe_load(read_bytes(path, limit=_MOST_BYTES, error=ConfigError).decode())
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: must be a mapping, such as `device: cuda`")
        if data.get("device") == "cpu":
            return _share(path.stem, Processor.model_validate(data), ranks_per_node)
        return _gpu(path.stem, Accelerator.model_validate(data), ranks_per_node)
    except ValidationError as error:
        lines = (f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError("\n".join(lines)) from None
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cluster.hardware: {path}: cannot be read: {error}") from None


def known_profiles() -> list[str]:
    return sorted(path.stem for path in shipped(PROFILES).glob("*.yaml"))


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(f"cluster.hardware: {name!r}: there is no such file")
    if name not in known_profiles():
        raise ConfigError(
            f"cluster.hardware: {name!r}: there is no such profile. Known: {', '.join(known_profiles())}; "
            "or give the path of a YAML file like those."
        )
    return shipped(PROFILES) / f"{name}.yaml"


def _gpu(name: str, profile: Accelerator, ranks_per_node: int) -> Hardware:
    share = None
    if (host := profile.host) is not None:
        ranks = max(1, ranks_per_node)
        share = Host(memory_gib=host.memory_gib / ranks, memory_bandwidth=host.memory_bandwidth / ranks, link=host.link)
    return Hardware(
        name=name,
        device=profile.device,
        memory_bytes=int(profile.memory_gib * GIB),
        peak_tflops=profile.bf16_tflops,
        bf16_tflops=profile.bf16_reachable_tflops,
        fp32_tflops=profile.fp32_tflops,
        fp8_tflops=profile.fp8_reachable_tflops or profile.fp8_tflops,
        training_efficiency=profile.training_efficiency,
        matmul_half_size=profile.matmul_half_size,
        memory_bandwidth=profile.memory_bandwidth,
        link=profile.link,
        network=profile.network,
        max_ranks_per_node=profile.gpus_per_node,
        host=share,
    )


def _share(name: str, profile: Processor, ranks_per_node: int) -> Hardware:
    cores = profile.cores_per_node if isinstance(profile.cores_per_node, int) else len(os.sched_getaffinity(0))
    memory = profile.memory_gib * GIB if isinstance(profile.memory_gib, float | int) else _machine_memory()
    share = cores / ranks_per_node
    bf16 = profile.bf16_tflops_per_core if profile.bf16_tflops_per_core != "auto" else rates().bf16 / 1e12
    fp32 = profile.fp32_tflops_per_core if profile.fp32_tflops_per_core != "auto" else rates().fp32 / 1e12
    return Hardware(
        name=name,
        device="cpu",
        memory_bytes=int(memory / ranks_per_node),
        peak_tflops=max(bf16, fp32) * share,
        bf16_tflops=bf16 * share,
        fp32_tflops=fp32 * share,
        fp8_tflops=None,
        training_efficiency=profile.training_efficiency,
        matmul_half_size=profile.matmul_half_size,
        memory_bandwidth=profile.memory_bandwidth / ranks_per_node,
        link=profile.link,
        network=profile.network,
        max_ranks_per_node=None,
    )


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
