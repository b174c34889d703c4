"""Fine-tuning a trained model. `python -m megatrain.finetune RUN` is one rank of it."""
