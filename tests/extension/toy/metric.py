"""What the toy task reports beside its loss."""

from megatrain.monitor.metric import METRICS, Metric

METRICS.register(
    "toy_masked",
    Metric(
        unit="masked positions per target",
        tag="toy/masked",
        format="{:.1%}".format,
        console="masked {value}",
        over_steps="mean",
        over_ranks="sum",
    ),
)
METRICS.register("toy_bits", Metric(unit="bits per target", tag="toy/bits", console="{value} bits"))
