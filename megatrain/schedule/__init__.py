"""The learning rate over a run: a file for each schedule."""
