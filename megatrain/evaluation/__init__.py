"""What a checkpoint is worth: metrics, what it says of single examples, and a report of it."""
