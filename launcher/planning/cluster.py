"""What a cluster's hardware cannot be asked for, whatever the layout."""

from launcher.planning.hardware import Hardware
from launcher.planning.precision import check_hardware_precision
from megatrain.base.errors import ConfigError
from megatrain.config import Config
from megatrain.model.architecture import ModelSection


def check_cluster(config: Config, model: ModelSection, hardware: Hardware, ranks_per_node: int) -> None:
    """
    Raises:
        ConfigError: the hardware, or the model, cannot be what a field asks for.
    """
    check_hardware_precision(config.training.precision, hardware)
    blocks, there = config.parallel.recompute_blocks, model.num_hidden_layers
    if isinstance(blocks, int) and blocks > there:
        raise ConfigError(f"parallel.recompute_blocks: {blocks}: the model has {there} blocks. Try all.")
    if isinstance(blocks, int) and config.parallel.activation_checkpointing == "none":
        raise ConfigError(
            f"parallel.recompute_blocks: {blocks}: parallel.activation_checkpointing is none. Try selective."
        )
    for field, to_host in (("offload_optimizer", "cpu"), ("activation_checkpointing", "offload")):
        asked = getattr(config.parallel, field) == to_host
        if asked and hardware.device != "cpu" and not hardware.host:
            raise ConfigError(
                f"parallel.{field}: {to_host}: {hardware.name} does not say what its host has. Add to "
                "the profile: host: {memory_gib: …, memory_bandwidth: …, link: …}, as in "
                "configs/hardware/h100-sxm.yaml."
            )
    most = hardware.max_ranks_per_node
    if most is not None and ranks_per_node > most:
        raise ConfigError(
            f"cluster.gpus_per_node: {ranks_per_node}: {hardware.name} has {most} GPUs per node. "
            f"Set it to {most} or less, and cluster.nodes to match."
        )
