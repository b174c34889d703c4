"""What the verbs of `megatrain` print."""
