"""One rank's batches of a supervised fine-tuning."""

from typing import cast

from megatrain.config.resolved import ResolvedFinetune
from megatrain.tasks.causal_lm import CausalLM, known_byte_lengths, loss_terms
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.sft.section import SFTSection


class SFT(CausalLM, ExampleTask):
    def __init__(self, config: ResolvedFinetune) -> None:
        lengths = known_byte_lengths(config.tokenizer.path)
        CausalLM.__init__(self, loss_terms(cast(SFTSection, config.task)), lengths)
        ExampleTask.__init__(self, config)
