"""A prepared folder → training batches, read ahead."""
