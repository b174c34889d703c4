"""megatrain trains: streams sharded tokens through a Transformer on DeepSpeed and writes layout-free checkpoints."""

__version__ = "0.1.0"
