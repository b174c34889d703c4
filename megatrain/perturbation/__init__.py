"""What disturbs a model in training, and not in evaluation: attached to the boundaries of its modules from outside."""
