"""Questions that a line answers: how many GPUs for a run in so many days, what is the largest that fits, what doubling
the nodes would change."""

from launcher.planning.hardware import load_hardware
from launcher.planning.plan import MICRO_BATCHES, make_plan
from launcher.planning.resolve import complete_model, complete_section
from launcher.planning.sweep import Row, plan_on
from megatrain.base.errors import PreflightError
from megatrain.base.formatting import duration, quantity
from megatrain.config import Config
from megatrain.model.architecture import ModelSection
from megatrain.model.family import FAMILIES

_MOST_GPUS = 16_384


def gpus_for_days(config: Config, days: float) -> str:
    """The fewest GPUs on which the run, checkpoints and failures included, ends in `days`."""
    config = complete_model(config)
    per_node = _gpus_per_node(config)
    sizes = [(1, gpus) for gpus in _doubled(1, per_node)]
    sizes += [(nodes, per_node) for nodes in _doubled(2, _MOST_GPUS // per_node)]
    best: Row | None = None
    for index, (nodes, gpus) in enumerate(sizes):
        row = plan_on(config, nodes, gpus)
        if row.plan is None:
            continue
        if row.hours <= 24 * days:
            return _enough(config, days, _fewer(config, sizes[index - 1] if index else None, row, days))
        if best is None or row.hours < best.hours:
            best = row
    if best is None:
        raise PreflightError(f"--days {days:g}: no layout of this run fits on up to {_MOST_GPUS:,} GPUs.")
    return (
        f"no number of GPUs up to {_MOST_GPUS:,} ends this run in {days:g} days with a global batch of "
        f"{config.training.global_batch_size}: the best is {best.gpus:,} GPUs in {duration(best.hours * 3600)}"
    )


def largest_batch(config: Config) -> str:
    """The largest micro-batch that fits with any layout, on the cluster as it is; the host, which holds more than is
    ever trained on it, is used only where the file says so."""
    config = complete_model(config)
    ranks = config.cluster.nodes * config.cluster.gpus_per_node
    for micro in reversed(MICRO_BATCHES):
        batch = {"micro_batch_size": micro, "global_batch_size": micro * ranks, "batch_size_warmup": ()}
        training = config.training.model_copy(update=batch)
        try:
            chosen = make_plan(config.model_copy(update={"training": training}), gpus_alone=True).chosen
        except PreflightError:
            continue
        tokens = micro * config.sequence_length
        return f"largest micro-batch: {micro} sequences ({quantity(tokens)} tokens) a rank, with {chosen.layout}"
    return "largest micro-batch: none; one sequence does not fit on a rank"


def largest_model(config: Config) -> str:
    """The largest model of this family, vocabulary, sequence and batch that fits with any layout, on the cluster as it
    is, as above; its shape at each size is the family's."""
    config = complete_model(config)
    section = complete_section(config)
    resized = FAMILIES.get(section.family).resized
    if resized is None:
        return f"largest model: the {section.family} family does not say what its larger models look like"
    fits = 0
    low, high = 1, 64  # eights of heads, so that tensor parallelism can divide them
    while low <= high:
        middle = (low + high) // 2
        if _fits(config, resized(section, 8 * middle)):
            fits, low = middle, middle + 1
        else:
            high = middle - 1
    if not fits:
        return "largest model: none of the family's shape fits"
    model = resized(section, 8 * fits)
    chosen = make_plan(config.model_copy(update={"model": model}), gpus_alone=True).chosen
    return (
        f"largest model: {quantity(model.parameters)} parameters ({model.num_hidden_layers} layers of "
        f"{model.hidden_size}), with {chosen.layout}, MFU {chosen.mfu:.0%}"
    )


def doubling(config: Config) -> str:
    """What twice the nodes would change."""
    config = complete_model(config)
    one, two = (plan_on(config, nodes) for nodes in (config.cluster.nodes, 2 * config.cluster.nodes))
    if one.plan is None or two.plan is None:
        refused = one if one.plan is None else two
        return f"on {refused.nodes} nodes: {refused.reason}"
    return (
        f"{one.nodes} → {two.nodes} nodes: {two.tokens_per_second / one.tokens_per_second:.2f} × the tokens/s "
        f"({quantity(one.tokens_per_second)} → {quantity(two.tokens_per_second)}), MFU {one.plan.mfu:.1%} → "
        f"{two.plan.mfu:.1%}, {duration(one.hours * 3600)} → {duration(two.hours * 3600)}, "
        f"{quantity(one.gpu_hours)} → {quantity(two.gpu_hours)} GPU-hours"
    )


def _gpus_per_node(config: Config) -> int:
    hardware = load_hardware(config.cluster.hardware, config.cluster.gpus_per_node)
    return hardware.max_ranks_per_node or config.cluster.gpus_per_node


def _doubled(first: int, last: int) -> list[int]:
    counts = []
    while first <= last:
        counts.append(first)
        first *= 2
    return counts


def _fewer(config: Config, below: tuple[int, int] | None, row: Row, days: float) -> Row:
    """Between two powers of two of nodes: the fewest, by bisection."""
    if below is None or row.nodes == 1:
        return row
    low, high = below[0] + 1, row.nodes - 1
    while low <= high:
        middle = (low + high) // 2
        between = plan_on(config, middle, row.gpus // row.nodes)
        if between.plan is not None and between.hours <= 24 * days:
            row, high = between, middle - 1
        else:
            low = middle + 1
    return row


def _enough(config: Config, days: float, row: Row) -> str:
    assert row.plan is not None
    return (
        f"{row.gpus:,} GPUs ({row.nodes} × {row.gpus // row.nodes} {config.cluster.hardware}) end this run in "
        f"{duration(row.hours * 3600)}, within {days:g} days: {row.plan.layout}, MFU {row.plan.mfu:.0%}, "
        f"{quantity(row.gpu_hours)} GPU-hours"
    )


def _fits(config: Config, model: ModelSection) -> bool:
    try:
        make_plan(config.model_copy(update={"model": model}), gpus_alone=True)
    except PreflightError:
        return False
    return True
