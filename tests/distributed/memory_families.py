"""Cases of memory.py for families other than Llama."""

from launcher.planning.layout import Layout
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.modernbert.section import ModernBertSection
from tests.distributed.memory import Case


def _other_families() -> list[Case]:
    sizes = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": 1024}
    local = ("sliding_attention", "full_attention")
    models = {
        "gpt": GPTSection(**sizes, max_position_embeddings=512),
        "bert": BertSection(**sizes, max_position_embeddings=512),
        "gemma3": Gemma3Section(
            **sizes, intermediate_size=704, head_dim=64, num_key_value_heads=2, layer_types=local, sliding_window=64
        ),
        "modernbert": ModernBertSection(**sizes, intermediate_size=704, layer_types=local),
    }
    cases = []
    for stage, (name, model) in enumerate(models.items()):
        for recompute, precision, tensor in (("none", "bf16", 1), ("selective", "fp32", 2)):
            layout = Layout(
                tensor_parallel=tensor,
                data_parallel=2,
                zero_stage=stage,
                sequence_parallel=tensor > 1,
                micro_batch_size=8,
                gradient_accumulation_steps=1,
                activation_checkpointing=recompute,  # type: ignore[arg-type]
            )
            cases.append(Case(name=name, model=model, layout=layout, sequence_length=512, precision=precision))
    return cases


OTHER_FAMILIES = _other_families()
