"""Which loader reads the training data of a run."""

from typing import Any

from megatrain.config.resolved import ResolvedPretrain
from megatrain.data.loading.loader import TrainLoader
from megatrain.data.loading.sequential import SequentialLoader
from megatrain.data.text.tokenizer import Tokenizer


def build_loader(
    config: ResolvedPretrain, *, data_rank: int, data_size: int, pin_memory: bool
) -> TrainLoader | SequentialLoader:
    """One data-parallel rank's loader: by position of prepared data, in sequence of someone else's tar files.

    Raises:
        DataError: a source, or the tokenizer that texts need, is missing or unsuitable.
        ConfigError: the batch cannot be shared out evenly.
    """
    share: dict[str, Any] = {
        "global_batch_size": config.training.batch_sizes,
        "micro_batch_size": config.training.micro_batch_size,
        "data_rank": data_rank,
        "data_size": data_size,
        "seed": config.run.seed,
    }
    if not config.data.sequential:
        return TrainLoader(config.data, **share, pin_memory=pin_memory)
    assert config.tokenizer is not None, "checked by problems()"
    return SequentialLoader(config.data, Tokenizer.load(config.tokenizer.path), **share, pin_memory=pin_memory)
