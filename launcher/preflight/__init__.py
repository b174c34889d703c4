"""What can be known before a GPU is held."""
