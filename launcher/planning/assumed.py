"""What `megatrain plan` takes for granted while files that decide it are not there yet; each is said in the answer."""

from pathlib import Path

from megatrain.config import AUTO, Config, PretrainConfig
from megatrain.data.folder.locations import is_remote

VOCABULARY = 32_768


def assume(config: Config) -> tuple[Config, list[str]]:
    """A run that can be planned before its data and tokenizer are made, and a sentence for each thing assumed.

    What is there and cannot be read is an error all the same; see `inputs.resolve_inputs`.
    """
    if isinstance(config, PretrainConfig) and config.model.vocab_size == AUTO and not _vocabulary_is_there(config):
        model = config.model.model_copy(update={"vocab_size": VOCABULARY})
        said = f"a vocabulary of {VOCABULARY:,}: neither the tokenizer nor the data is there yet (model.vocab_size=N)"
        return config.model_copy(update={"model": model}), [said]
    return config, []


def _vocabulary_is_there(config: PretrainConfig) -> bool:
    tokenizer = config.tokenizer is not None and Path(config.tokenizer.path).exists()
    data = config.data.train[0].path
    return tokenizer or is_remote(data) or Path(data).exists()
