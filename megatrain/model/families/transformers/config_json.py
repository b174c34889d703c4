"""config.json of a model of `transformers`, as its configuration says. No torch."""

from typing import Any

from megatrain.model.families.transformers.section import TransformersSection


def huggingface_config(section: TransformersSection) -> dict[str, Any]:
    positions = section.max_position_embeddings
    return {
        **({} if positions is None else {"max_position_embeddings": positions}),
        **section.configured,
        "architectures": [section.described.architecture],
        "vocab_size": section.padded_vocab_size,
        "tie_word_embeddings": section.tie_word_embeddings,
    }
