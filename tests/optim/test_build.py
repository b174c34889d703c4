import torch
from torch import nn

from megatrain.optim.adamw import AdamWSection
from megatrain.optim.build import build_optimizer
from megatrain.optim.muon import MuonSection

CONFIG = AdamWSection(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4, bias=False)
        self.linear = nn.Linear(4, 7)
        self.linear.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def is_matrix(model: nn.Module):
    return lambda name: model.get_parameter(name).ndim >= 2


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Model()
    decayed, plain = build_optimizer(model, CONFIG, decays=is_matrix(model)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model.embedding.weight)]  # tied: once
    assert [id(p) for p in plain["params"]] == [id(model.norm.weight), id(model.linear.bias)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    for group in (decayed, plain):
        assert group["lr_scale"] == 1.0
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)


def test_an_empty_group_is_dropped() -> None:
    """DeepSpeed flattens each group, and cannot flatten nothing."""
    optimizer = build_optimizer(nn.Linear(3, 2, bias=False), CONFIG, decays=lambda name: True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3]


def test_a_step_before_the_first_rate_changes_nothing() -> None:
    model = Model()
    optimizer = build_optimizer(model, CONFIG, decays=is_matrix(model))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_hidden_matrices_are_groups_of_their_own_for_an_optimizer_of_matrices() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    hidden = {"is_hidden_matrix": lambda name: name == "1.weight", "decays": is_matrix(model)}
    groups = build_optimizer(model, MuonSection(weight_decay=0.3), **hidden).param_groups
    names = {p: name for name, p in model.named_parameters()}
    assert [[names[p] for p in group["params"]] for group in groups] == [
        ["1.weight"],
        ["0.weight"],
        ["0.bias", "1.bias"],
    ]
    assert [group["hidden_matrix"] for group in groups] == [True, False, False]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]
    together, _ = build_optimizer(model, CONFIG, **hidden).param_groups
    assert len(together["params"]) == 2, "of AdamW all are alike"


def test_weights_of_another_rate_or_decay_are_groups_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    scale = {"0.weight": 0.25}
    rates = {
        "lr_scale": lambda name: scale.get(name, 1.0),
        "decays": lambda name: is_matrix(model)(name) / scale.get(name, 1.0),
    }
    groups = build_optimizer(model, CONFIG, **rates).param_groups
    names = {p: name for name, p in model.named_parameters()}
    assert [[names[p] for p in group["params"]] for group in groups] == [
        ["1.weight"],
        ["0.weight"],
        ["0.bias", "1.bias"],
    ]
    assert [group["lr_scale"] for group in groups] == [1.0, 0.25, 1.0]
    assert [group["lr_scale"] * group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]


def test_buckets_are_neighbours_from_the_last_on_and_hold_all_once() -> None:
    model = nn.Sequential(*(nn.Linear(2, size, bias=False) for size in (1, 2, 8, 2, 2)), nn.LayerNorm(4))
    groups = build_optimizer(model, CONFIG, decays=is_matrix(model), bucket_elements=8).param_groups
    assert [[p.numel() for p in group["params"]] for group in groups] == [[4, 4], [16], [2, 4], [4, 4]]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.3, 0.0]
    assert {p for group in groups for p in group["params"]} == set(model.parameters())
