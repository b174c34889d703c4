"""Every layout generates what one process does: the same tokens, greedy or drawn."""

import pytest

from megatrain.config import ModelSection
from megatrain.generation.decode import continued, with_cache
from megatrain.generation.sampling import Sampling
from tests.distributed.layouts import Layout, Run, model_section
from tests.distributed.ranks import RankPool
from tests.generation.families import model_of

pytestmark = pytest.mark.distributed

NEW, END = 10, 200
PROMPTS = [[3, 9, 27], [81], [5, 25, 125, 113, 53, 9, 45, 225, 101], [7, 49], [11, 121, 51, 49, 27]]
SAMPLINGS = (Sampling(), Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3))

LAYOUTS = [
    Layout(3, tensor=1, data=2),
    Layout(1, tensor=2, data=1),
    Layout(1, tensor=2, data=1, sequence_parallel=True, checkpointing="full"),
    Layout(1, tensor=1, data=1, context=2),
    pytest.param(Layout(3, tensor=2, data=2, sequence_parallel=True), marks=pytest.mark.full),
    pytest.param(Layout(3, tensor=1, data=2, compile=True), marks=pytest.mark.full),
    pytest.param(Layout(0, tensor=4, data=1, tied=True), marks=pytest.mark.full),
    pytest.param(Layout(2, tensor=1, data=4), marks=pytest.mark.full),
]


def section_of(tied: bool) -> ModelSection:
    """With windows, and weights that make logits differ."""
    pattern = {"sliding_window": 4, "layer_types": ("sliding_attention", "full_attention")}
    return model_section(tied).model_copy(update={"initializer_range": 0.3, **pattern})


def ends(made: list[int]) -> bool:
    """A third of the tokens end a text, so that texts, and ranks, end at different times."""
    return made[-1] >= END


def generated(layout: Layout) -> list[list[list[int]]]:
    """By each sampling. A rank has trained a step before, and does after."""
    from megatrain.train.generating import generate_on_layout

    run = Run(layout, model=section_of(layout.tied))
    found = [
        generate_on_layout(
            run.engine,
            run.config.parallel,
            PROMPTS,
            sampling,
            max_new_tokens=NEW,
            ends=ends,
            vocab_size=240,
            batch_size=2,
        )
        for sampling in SAMPLINGS
    ]
    run.train(0, 1)
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tokens_are_those_of_one_process(ranks: RankPool, layout) -> None:
    model = model_of(section_of(layout.tied))
    expected = []
    for sampling in SAMPLINGS:
        texts = []
        for number, prompt in enumerate(PROMPTS):
            with with_cache(model, places=len(prompt) + NEW) as next_logits:
                options = {"max_new_tokens": NEW, "ends": ends, "vocab_size": 240, "seeds": [number]}
                texts += continued(next_logits, [prompt], sampling, **options)
        expected.append(texts)
    assert len({len(text) for text in expected[0]}) > 2, "else ranks end at the same time"
    for found in ranks.run(layout.world_size, generated, layout):
        assert found == expected
