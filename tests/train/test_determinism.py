"""`training.deterministic`: set before anything is computed; what has no deterministic kernel is named."""

import os

import pytest
import torch

from megatrain.train.determinism import make_deterministic


@pytest.fixture
def restored(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_kernels_add_in_a_fixed_order(restored) -> None:
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_setting_of_ones_own_stays(restored, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_step_of_the_model_has_deterministic_kernels(restored) -> None:
    from megatrain.model.architecture import row_of
    from megatrain.model.families.llama.module import Llama
    from megatrain.model.initialization import initial_weight, materialize
    from tests.distributed.layouts import documents, global_batch, model_section
    from tests.documents import cu_seqlens_of

    make_deterministic()
    section = model_section()
    with torch.device("meta"):
        model = Llama(section)
    materialize(model, lambda name, p: initial_weight(row_of(section, name), 5))
    ids, labels = global_batch(0)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(ids, labels, cu_seqlens=cu_seqlens_of(documents())).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
