"""Models of transformers: the table that is read from them, and what they compute beside transformers itself."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from megatrain.base.errors import ConfigError
from megatrain.huggingface.names import to_huggingface
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.model.architecture import parameter_table, row_of, rows
from megatrain.model.build import build_model
from megatrain.model.families.transformers import resolve
from megatrain.model.families.transformers.attention import misfit
from megatrain.model.families.transformers.section import TransformersSection
from megatrain.model.initialization import initial_weight, materialize
from megatrain.model.parameter_row import Constant, Kind, Normal
from tests.transformers_models import ISOLATED, MODELS, answer, said, section_of

LENGTH = 32
BOUNDS = [0, 10, 32, 50, 64]
FULL = [name for name in MODELS if name not in ("opt", "gpt_neox", "olmo2", "bloom")]


def some(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.full if name in FULL else ()) for name in names]


def built(section: TransformersSection) -> torch.nn.Module:
    """With weights around those of a start from a seed, so that no bias is zero and no norm one."""
    with torch.device("meta"):
        model = build_model(section)
    generator = torch.Generator().manual_seed(3)

    def initial(name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        row = row_of(section, name)
        known = not (isinstance(row.init, Constant) and math.isnan(row.init.value)) and len(row.shape) < 3
        weight = initial_weight(row, 1) if known else torch.rand(row.shape, generator=generator)
        return weight + 0.05 * torch.randn(weight.shape, generator=generator)

    materialize(model, initial)
    return model.train()


def reference(name: str, section: TransformersSection, model: torch.nn.Module) -> torch.nn.Module:
    """The same weights in transformers, without dropout, in the plainest attention it has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**said(name))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    state = to_huggingface({name: weight.detach() for name, weight in model.named_parameters()}, section)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()
    assert not unexpected
    assert set(missing) <= set(section.described.tied)
    return theirs


@pytest.mark.parametrize("name", some(list(MODELS)))
def test_it_computes_what_transformers_computes(name: str) -> None:
    section = section_of(name)
    model = built(section)
    assert {key: weight.shape for key, weight in model.named_parameters()} == {
        row.name: row.shape for row in parameter_table(section)
    }
    assert section.parameters == sum(weight.numel() for weight in model.parameters())
    assert (section.described.mixes is None) == (name in ISOLATED)
    theirs = reference(name, section, model)
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(256, (2, 2, LENGTH), generator=generator)
    labels[0, :5] = -100
    places = torch.arange(LENGTH).repeat(2, 1)
    torch.testing.assert_close(model(ids, position_ids_BS=places), theirs(input_ids=ids).logits, atol=1e-4, rtol=1e-4)

    loss = model(ids, labels, position_ids_BS=places)
    loss.backward()
    expected = F.cross_entropy(theirs(input_ids=ids).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = {key.removeprefix("model."): weight.grad for key, weight in model.named_parameters()}
    for key, weight in theirs.named_parameters():
        if key != "model.decoder.embed_tokens.weight":  # whose row of padding has no gradient there
            torch.testing.assert_close(ours[key], weight.grad, atol=1e-3, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", some(list(ISOLATED)))
def test_documents_do_not_see_each_other(name: str) -> None:
    model = built(section := section_of(name))
    theirs = reference(name, section, model)
    ids = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    places = torch.cat([torch.arange(end - begin) for begin, end in itertools.pairwise(BOUNDS)])
    packed = model(ids, position_ids_BS=places.view(2, -1), cu_seqlens=torch.tensor(BOUNDS, dtype=torch.int32))
    parts = (ids.flatten()[begin:end][None] for begin, end in itertools.pairwise(BOUNDS))
    alone = torch.cat([theirs(input_ids=part).logits[0] for part in parts])
    torch.testing.assert_close(packed.flatten(0, 1), alone, atol=1e-4, rtol=1e-4)


def test_a_model_whose_documents_mix_takes_no_boundaries() -> None:
    model = built(section_of("bloom"))
    with pytest.raises(ConfigError, match="would see each other, for its attention is its own"):
        model(torch.zeros(1, 8, dtype=torch.int64), cu_seqlens=torch.tensor([0, 4, 8], dtype=torch.int32))


@pytest.mark.parametrize("name", ["opt", "cohere"])  # by the head's product, and by whole logits
def test_terms_of_the_loss(name: str) -> None:
    model = built(section_of(name))
    ids = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.roll(-1, 1)
    labels[0, :3] = -100
    logits = model(ids).flatten(0, 1)
    loss, cross_entropy = model(ids, labels, terms=LossTerms(z_loss=1e-2, label_smoothing=0.1))
    target = labels.flatten()
    plain = F.cross_entropy(logits, target, reduction="sum")
    smooth = F.cross_entropy(logits, target, reduction="sum", label_smoothing=0.1)
    squares = (logits.logsumexp(-1).square() * (target != -100)).sum()
    assert cross_entropy.item() == pytest.approx(plain.item(), rel=1e-5)
    assert not cross_entropy.requires_grad
    assert loss.item() == pytest.approx((smooth + 1e-2 * squares).item(), rel=1e-5)
    by_token = model(ids, labels, terms=LossTerms(by_token=True))
    torch.testing.assert_close(by_token.flatten(), F.cross_entropy(logits, target, reduction="none"))


def test_nothing_is_dropped_in_training_and_every_row_is_trained() -> None:
    model = built(section_of("opt", dropout=0.5, layerdrop=0.5))
    ids = torch.full((1, LENGTH), 1)  # OPT's padding
    losses = [model(ids, ids) for _ in range(3)]
    assert len({loss.item() for loss in losses}) == 1
    rows_of = model.get_submodule("embedding").weight
    model.get_submodule("head").weight = torch.nn.Parameter(rows_of.detach().clone())  # untied: its own gradient alone
    model(ids, ids).backward()
    assert rows_of.grad[1].abs().max() > 0


def test_how_weights_begin_is_what_the_model_says() -> None:
    section = section_of("opt", init_std=0.3)
    found = {row.name.removeprefix("model.model.decoder."): row for row in rows(section)}
    assert found["embed_tokens.weight"].init == Normal(0.3)  # though its row of padding is zeroed there
    assert found["layers.{}.fc1.weight"].init == Normal(0.3)
    assert found["layers.{}.fc1.bias"].init == Constant(0.0)
    assert found["layers.{}.final_layer_norm.weight"].init == Constant(1.0)
    assert found["layers.{}.fc1.weight"].layers == range(3)
    assert found["layers.{}.fc1.weight"].kind is Kind.MLP
    assert found["layers.{}.self_attn.q_proj.weight"].kind is Kind.ATTENTION
    assert not found["layers.{}.final_layer_norm.bias"].decay
    assert section.longest_sequence == 64


def test_weights_that_no_law_begins_are_for_pretrained_models_only() -> None:
    section = section_of("mamba")
    assert resolve.complete(section, from_seed=False) is section
    with pytest.raises(ConfigError, match=r"mamba: transformers begins backbone\.layers\.\{\}\.mixer\.A_log"):
        resolve.complete(section, from_seed=True)


def test_a_process_of_its_own_describes_a_model() -> None:
    name = "gpt_neox"
    given = TransformersSection.model_validate({"configuration": said(name)})
    assert given.vocab_size == 256
    assert resolve.complete(given, from_seed=True) == section_of(name)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"model_type": "nothing"}, "'nothing': megatrain has no family for it, and transformers .* has no causal"),
        ({"model_type": "vit"}, "has no causal language model of it"),
        (said("opt", num_attention_heads=5), "cannot build this model without memory: embed_dim must be divisible"),
        (said("opt", hidden_size="x"), "transformers takes no such configuration"),
        ({"model_type": "qwen2_moe", "vocab_size": 256, "num_hidden_layers": 2}, "has experts"),
        (said("opt", quantization_config={"quant_method": "gptq"}), "quantized weights are not trained"),
    ],
)
def test_what_cannot_be_is_told(configuration: dict[str, object], message: str, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "_answer", answer)
    with pytest.raises(ConfigError, match=f"here: .*{message}"):
        resolve.described(configuration, "here")


def test_code_is_never_fetched_nor_picked(monkeypatch) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(resolve, "_answer", lambda text, where: seen.append(json.loads(text)) or answer(text, where))
    evil = {"auto_map": {"AutoConfig": "a--b.C"}, "attn_implementation": "some/kernels", "_attn_implementation": "x/y"}
    resolve.described(said("opt", **evil), "here")
    assert not seen[0].keys() & evil.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model.path or model.configuration"),
        ({"path": "a", "configuration": said("opt")}, "one of them"),
        ({"configuration": {"hidden_size": 4}}, "must have model_type"),
        ({"configuration": said("opt"), "num_hidden_layers": 3}, r"model\.num_hidden_layers follows"),
    ],
)
def test_the_configuration_is_said_once(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TransformersSection.model_validate({"family": "transformers", **fields})


def test_another_table_than_the_runs_is_refused() -> None:
    section = section_of("opt")
    found = section.described
    other = section.model_copy(update={"description": found.model_copy(update={"weights": found.weights[1:]})})
    with pytest.raises(ConfigError, match=r"makes model\.model\.decoder\.embed_tokens\.weight .* resolved with None"):
        build_model(other)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"mask": None}, "masks of its own"),
        ({"mask": torch.zeros(1, 1, 8, 8)}, "masks of its own"),
        ({"value": torch.zeros(1, 2, 8, 3)}, "different sizes"),
        ({"options": {"is_causal": False}}, "not causal"),
        ({"options": {"s_aux": torch.zeros(2)}}, "it has s_aux"),
        ({"options": {"s_aux": None, "position_ids": torch.zeros(1)}}, None),
    ],
)
def test_what_attention_cannot_stand_for(changes: dict[str, object], why: str | None) -> None:
    heads = torch.zeros(1, 2, 8, 4)
    mask = torch.zeros(1, 1, 1, 3, dtype=torch.int32)
    given = {"query": heads, "key": heads, "value": heads, "mask": mask, "options": {}, **changes}
    found = misfit(torch.nn.Module(), **given)  # type: ignore[arg-type]
    assert found is None if why is None else why in found
