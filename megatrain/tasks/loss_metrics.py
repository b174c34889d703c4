"""The metrics of a loss that is a cross-entropy, of tokens or of classes."""

from megatrain.monitor.metric import METRICS, Metric

METRICS.register(
    "validation_loss", Metric(unit="nats per target", tag="validation/loss", console="validation loss {value}")
)
METRICS.register(
    "cross_entropy",
    Metric(
        unit="nats per target: the loss without z-loss and label smoothing",
        tag="train/cross_entropy",
        format="{:.3f}".format,
        console="cross-entropy {value}",
        over_steps="mean",
        over_ranks="sum",
    ),
)
