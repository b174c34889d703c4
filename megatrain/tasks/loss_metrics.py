"""The metrics of a loss that is a cross-entropy, of tokens or of classes."""

from megatrain.monitor.metric import METRICS, Metric

METRICS.register(
    "validation_loss", Metric(unit="nats per target", tag="validation/loss", console="validation loss {value}")
)
METRICS.register(
    "perplexity", Metric(unit="e to the power of nats per target, of an evaluation", tag="validation/perplexity")
)
METRICS.register(
    "bits_per_byte",
    Metric(unit="bits per byte of the text that an evaluation's targets are", tag="validation/bits_per_byte"),
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
