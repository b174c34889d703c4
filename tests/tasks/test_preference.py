"""The losses of preferences are those of TRL, written out by hand; what a run of them may not ask for."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from launcher.planning.legality import Run, first_violation
from megatrain.base.errors import CheckpointError
from megatrain.config.file import parse_config
from megatrain.data.examples.packing import Example, pack
from megatrain.tasks.preference import dpo, ipo, kto, orpo
from megatrain.tasks.preference.batch import PreferenceEvaluation, preference_batch, reference_hash
from megatrain.tasks.preference.reference import read_reference, write_reference
from megatrain.tasks.preference.section import PreferenceSection
from megatrain.tasks.registry import TASKS
from tests.data.examples.test_example_set import model

POLICY = torch.tensor([[-12.0, -15.0], [-9.0, -7.5], [-3.0, -30.0]])
REFERENCE = torch.tensor([[-13.0, -14.0], [-8.0, -9.0], [-4.0, -20.0]])
TOKENS = torch.tensor([[4.0, 5.0], [3.0, 3.0], [1.0, 10.0]])


def test_dpo() -> None:
    section = PreferenceSection(beta=0.3, label_smoothing=0.1)
    losses, rewards = dpo.loss(POLICY, REFERENCE, TOKENS, section)
    logits = (POLICY[:, 0] - POLICY[:, 1]) - (REFERENCE[:, 0] - REFERENCE[:, 1])
    expected = -F.logsigmoid(0.3 * logits) * 0.9 - F.logsigmoid(-0.3 * logits) * 0.1
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(rewards, 0.3 * (POLICY - REFERENCE))
    at_start, _ = dpo.loss(REFERENCE, REFERENCE, TOKENS, PreferenceSection())
    assert at_start.tolist() == pytest.approx([math.log(2)] * 3)


def test_ipo() -> None:
    losses, _ = ipo.loss(POLICY, REFERENCE, TOKENS, PreferenceSection(loss="ipo", beta=0.2))
    chosen, rejected = (POLICY[:, n] / TOKENS[:, n] - REFERENCE[:, n] / TOKENS[:, n] for n in (0, 1))
    torch.testing.assert_close(losses, (chosen - rejected - 1 / (2 * 0.2)) ** 2)


def test_orpo() -> None:
    losses, _ = orpo.loss(POLICY, REFERENCE, TOKENS, PreferenceSection(loss="orpo", beta=0.2))
    chosen, rejected = (POLICY[:, n] / TOKENS[:, n] for n in (0, 1))
    odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    torch.testing.assert_close(losses, -chosen - 0.2 * F.logsigmoid(odds))


def test_kto() -> None:
    """As TRL has it: the KL term in the middle, each kind of answer with its weight."""
    section = PreferenceSection(loss="kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    policy, reference = POLICY.flatten(), REFERENCE.flatten()
    desirable = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    kl = kto.divergence(torch.tensor(6.0), 4)
    losses, rewards = kto.loss(policy, reference, desirable, kl, section)
    expected = [
        1.5 * (1 - torch.sigmoid(0.2 * (ratio - 1.5))) if good else 0.5 * (1 - torch.sigmoid(0.2 * (1.5 - ratio)))
        for ratio, good in zip(policy - reference, desirable, strict=True)
    ]
    torch.testing.assert_close(losses, torch.stack(expected))
    torch.testing.assert_close(rewards, 0.2 * (policy - reference))
    assert kto.divergence(torch.tensor(-3.0), 4) == 0
    at_start, _ = kto.loss(reference, reference, desirable, torch.tensor(0.0), PreferenceSection(loss="kto"))
    assert at_start.tolist() == [0.5] * 6


RUN = {
    "run": {"name": "p"},
    "finetune": {"base": "b", "train": ["a"]},
    "training": {"steps": 1, "global_batch_size": 4},
    "task": {"name": "preference"},
}


def test_what_a_run_may_not_ask_for() -> None:
    task = {"name": "preference", "loss": "ipo", "label_smoothing": 0.1}
    (issue,) = TASKS.get("preference").issues(parse_config(json.dumps(RUN | {"task": task})))
    assert issue[:3] == ("task.label_smoothing", 0.1, "is of loss dpo, not of ipo")
    task = {"name": "preference", "undesirable_weight": 0.5}
    (issue,) = TASKS.get("preference").issues(parse_config(json.dumps(RUN | {"task": task})))
    assert issue[:3] == ("task.undesirable_weight", 0.5, "is of loss kto, not of dpo")
    options = {"world_size": 2, "ranks_per_node": 2, "global_batch_size": 2, "sequence_lengths": (8,)}
    choice = {"context_parallel": 2}
    assert first_violation(Run(model=model(128), **options), choice) is None
    found = first_violation(Run(model=model(128), **options, whole_sequences=True), choice)
    assert found is not None
    assert found[1] == "context_parallel=2 shares out sequences, of which the task's loss needs the whole"


def rows_of(*lengths: int):
    examples = [Example(np.arange(10, 10 + n, dtype=np.int32), 1) for n in lengths]
    return pack(examples, 12, 0, together=2)


def test_which_position_predicts_a_token_of_which_answer() -> None:
    rows = rows_of(3, 2, 2, 4, 6, 5)
    batch = preference_batch(rows, [np.zeros((2, 2), np.float32), np.ones((1, 2), np.float32)])
    assert batch.answers is not None
    assert batch.answers.tolist() == [
        [0, 0, -1, 1, -1, 2, -1, 3, 3, 3, -1, -1],
        [4, 4, 4, 4, 4, -1, 5, 5, 5, 5, -1, -1],
    ]
    assert ((batch.answers >= 0) == (batch.labels != -100)).all()
    assert batch.reference is not None
    assert batch.reference.tolist() == [[0, 0], [0, 0], [1, 1]]


def test_every_rank_has_as_many_batches() -> None:
    rows = rows_of(*[6, 5] * 5)
    reference = [np.zeros((1, 2), np.float32)] * 5
    shares = [PreferenceEvaluation(rows, reference, micro_batch_size=2, data_rank=r, data_size=2) for r in (0, 1)]
    assert [[list(one) for one in share.shares()] for share in shares] == [[[0, 1], [4]], [[2, 3], []]]
    assert [len(list(share)) for share in shares] == [2, 2]


def test_the_reference_is_kept_and_known_again(tmp_path) -> None:
    references = [[np.full((2, 2), 1.5, np.float32)], [np.full((1, 2), 2.5, np.float32)]]
    write_reference(tmp_path, references)
    empty = [[np.zeros((2, 2), np.float32)], [np.zeros((1, 2), np.float32)]]
    read_reference(tmp_path, empty, expected=reference_hash(references[0]))
    assert [row.tolist() for part in empty for row in part] == [row.tolist() for part in references for row in part]
    with pytest.raises(CheckpointError, match=r"reference.npy: is not what the checkpoint was trained with"):
        read_reference(tmp_path, empty, expected="0" * 16)
    with pytest.raises(CheckpointError, match=r"reference.npy: is of other pairs"):
        read_reference(tmp_path, empty[:1], expected=None)
    (tmp_path / "reference.npy").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"reference.npy: the log-probabilities .* cannot be read"):
        read_reference(tmp_path, empty, expected=None)
