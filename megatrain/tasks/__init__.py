"""What a run trains on: batches, a loss, and what an evaluation measures; a package each."""
