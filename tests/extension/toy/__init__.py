"""Everything that can be added to megatrain, once: importing this registers it. Without torch, as the launcher is."""

from toy import family, metric, optimizer, schedule, sink, task

__all__ = ["family", "metric", "optimizer", "schedule", "sink", "task"]
