"""Layer-wise learning rates: by how many layers lie above a weight, in every family."""

import pytest
import torch
from torch import nn

from megatrain.model.architecture import parameter_table
from megatrain.optim.adamw import AdamWSection
from megatrain.optim.build import build_optimizer
from megatrain.optim.layers import lr_scale
from tests.distributed.test_families import SECTIONS


@pytest.mark.parametrize("family", SECTIONS)
def test_rates_fall_with_the_layers_above(family) -> None:
    section = SECTIONS[family].model_copy(update={"num_labels": 3})
    layers = section.num_hidden_layers
    names = [row.name for row in parameter_table(section)]
    scales = {name: lr_scale(section, name, 0.5) for name in names}
    for name, scale in scales.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            assert scale == 0.5 ** (layers - 1 - int(parts[1])), name
        else:
            assert scale == (0.5**layers if "embedding" in parts[0] else 1.0), name
    assert scales["head.weight"] == scales[f"blocks.{layers - 1}.attention.query.weight"] == 1.0
    assert {lr_scale(section, name, 1.0) for name in names} == {1.0}


def test_weights_of_one_rate_are_a_group() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    groups = build_optimizer(
        model,
        AdamWSection(weight_decay=0.3),
        decays=lambda name: name.endswith("weight"),
        lr_scale=lambda name: 0.5 if name.startswith("0") else 1.0,
    ).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [([names[p] for p in group["params"]], group["weight_decay"], group["lr_scale"]) for group in groups]
    assert found == [
        (["1.weight"], 0.3, 1.0),
        (["0.weight"], 0.3, 0.5),
        (["1.bias"], 0.0, 1.0),
        (["0.bias"], 0.0, 0.5),
    ]
    assert all(isinstance(group["params"][0], torch.nn.Parameter) for group in groups)
