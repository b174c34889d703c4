"""Fine-tuning from a pretraining checkpoint. `python -m megatrain.finetune RUN` is one rank of such a run."""
