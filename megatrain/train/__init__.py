"""The training loop, and what it drives. `python -m megatrain.train RUN` is one rank of a pretraining run."""
