import contextlib
import io
import os
from pathlib import Path

import pytest

from megatrain.base.progress import Progress
from megatrain.config import PretrainConfig, TrainingSection
from megatrain.config.batch_size_warmup import BatchSizeStage
from megatrain.model.families.bert.section import BertSection
from megatrain.monitor.sinks.console import Console
from megatrain.run.directory import RunDir


@pytest.fixture
def config() -> PretrainConfig:
    sections = {
        "run": {"name": "llama-125m"},
        "model": {
            "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 4,
            "intermediate_size": 2048, "vocab_size": 32_768,
        },
        "data": {"sequence_length": 2048, "train": [{"path": "data/web"}]},
        "training": {"tokens": 2.5e9, "global_batch_size": 256, "micro_batch_size": 4},
        "parallel": {
            "tensor_parallel": 1, "context_parallel": 1, "zero_stage": 1,
            "sequence_parallel": False, "activation_checkpointing": "selective",
        },
        "cluster": {"hardware": "h100-sxm", "nodes": 8, "gpus_per_node": 8},
    }  # fmt: skip
    return PretrainConfig.model_validate(sections)


@pytest.fixture
def run() -> RunDir:
    return RunDir("runs/llama-125m")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(config, run, stream) -> Console:
    return Console(config, run, rank=0, world_size=64, stream=stream)


def test_the_block_at_the_start(console, stream):
    console.header({"memory_bytes": {"total": 14.2 * 2**30}, "mfu": 0.46, "step_seconds": 0.78})
    assert stream.getvalue().splitlines() == [
        "megatrain 0.1.0 · run llama-125m · 8 nodes × 8 h100-sxm · ZeRO-1, tensor 1, data 64 · micro-batch 4 × 1"
        " · compile, selective recompute · bf16",
        "125.8M parameters · 2.50B tokens = 4,769 steps of 524,288 · planned 14.2 GiB per GPU · planned 46% MFU, 1h02m",
    ]


def test_the_block_says_what_is_on_the_host(config, run, stream):
    offload = {"activation_checkpointing": "offload", "offload_optimizer": "cpu"}
    there = config.model_copy(update={"parallel": config.parallel.model_copy(update=offload)})
    Console(there, run, rank=0, world_size=64, stream=stream).header()
    assert "compile, full recompute, activations and optimizer on the host · bf16" in stream.getvalue()


def test_the_block_says_what_runs_where_it_differs_from_the_file(config, run, stream):
    Console(config, run, rank=0, world_size=2, stream=stream).header()
    assert "2 ranks of h100-sxm · ZeRO-1, tensor 1, data 2 · micro-batch 4 × 32" in stream.getvalue()


def test_a_resume_names_step_checkpoint_and_data_position(console, run, stream):
    then, now = "ZeRO-1, tensor 1, data 32", "ZeRO-1, tensor 1, data 64"
    progress = Progress(1000, 256_000)
    console.resumed(progress, run.step(1000), saved_ranks=32, saved_layout=then, layout=now)
    console.resumed(progress, run.step(1000), saved_ranks=64, saved_layout=now, layout=now)
    assert stream.getvalue().splitlines() == [
        "resume: step 1,000 from checkpoints/step-00001000 (saved on 32 ranks as ZeRO-1, tensor 1, data 32; "
        "now 64 as ZeRO-1, tensor 1, data 64) · data position 256,000 samples, 524.3M tokens"
        " · 3,769 steps of 524,288 to go",
        "resume: step 1,000 from checkpoints/step-00001000 (saved on 64 ranks) · data position 256,000 samples,"
        " 524.3M tokens · 3,769 steps of 524,288 to go",
    ]


def test_after_a_resume_with_another_batch_size_steps_are_counted_to_the_true_end(console, run, stream, step_metrics):
    """Half of the tokens in steps of half the size: 4,769 more of the full one."""
    console.header(goes_on=True)
    assert "2.50B tokens, from here on in steps of 524,288 tokens" in stream.getvalue()
    half = Progress(4769, 4769 * 128)
    console.resumed(half, run.step(4769), saved_ranks=64, saved_layout="x", layout="x")
    console.write(4770, step_metrics(4770))
    assert "2,384 steps of 524,288 to go\nstep 4,770/7,153  loss" in stream.getvalue()


@pytest.mark.parametrize(("training", "wanted"), [({"steps": 7}, "steps is 7"), ({"tokens": 2500}, "tokens is 2,500")])
def test_a_run_at_its_end_has_nothing_to_do(config, run, stream, training, wanted):
    section = TrainingSection(**training, global_batch_size=256, micro_batch_size=4)
    console = Console(config.model_copy(update={"training": section}), run, rank=0, world_size=64, stream=stream)
    console.nothing_to_do(20, run.step(20))
    saved = "runs/llama-125m/checkpoints/step-00000020"
    assert (
        stream.getvalue() == f"nothing to do: the run is at step 20, and training.{wanted}; its checkpoint is {saved}\n"
    )


def test_a_step_is_one_line(console, stream, step_metrics):
    console.write(1010, step_metrics(1010, step_seconds=1.0, data_wait_fraction=0.002))
    assert stream.getvalue() == (
        "step 1,010/4,769  loss 3.412  |g| 0.41  lr 5.9e-4  1.92M tok/s  30.0k/GPU  MFU 41.3%  data wait 0.2%"
        "  14.6 GiB  eta 1h02m\n"
    )


def test_on_a_cpu_profile_a_rank_is_called_a_rank(config, run, stream, step_metrics):
    cluster = config.cluster.model_copy(update={"hardware": "cpu"})
    on_cpu = config.model_copy(update={"cluster": cluster})
    Console(on_cpu, run, rank=0, world_size=64, stream=stream).write(10, step_metrics())
    assert "30.0k/rank" in stream.getvalue()


def test_evaluations_and_checkpoints(console, run, stream):
    console.write(40, {"validation_loss": 4.2149, "validation_targets": 8192})
    console.checkpoint(40, run.step(40), seconds=0.42, size_bytes=2**31)
    assert stream.getvalue().splitlines() == [
        "step 40/4,769  validation loss 4.215  (8,192 tokens)",
        "step 40/4,769  saved checkpoints/step-00000040 (2.0 GiB in 0.4s)",
    ]


def test_waiting_for_data_is_warned_of_when_it_begins(console, stream, step_metrics):
    for wait in (0.12, 0.12, 0.0, 0.12):
        console.write(10, step_metrics(10, step_seconds=1.0, data_wait_fraction=wait))
    warning = "warning: data wait is 12% of a step; raise data.prefetch (now 2)"
    assert [line == warning for line in stream.getvalue().splitlines()] == [False, True, False, False, False, True]


def test_the_page_at_the_end(console, run, stream, step_metrics):
    console.write(4769, step_metrics(4769))
    console.write(4769, {"validation_loss": 3.39, "validation_targets": 8192})
    stream.truncate(0)
    console.end(4769, seconds=3720, checkpoint=run.step(4769))
    text = stream.getvalue()
    for part in (
        "done: step 4,769/4,769 in 1h02m",
        "3.412 training, 3.39 validation",
        "2.50B",
        "runs/llama-125m/checkpoints/step-00004769",
        'megatrain generate runs/llama-125m "Once upon a time"',
        "megatrain tensorboard runs/llama-125m",
    ):
        assert part in text


def test_an_encoder_is_exported_since_it_continues_no_text(config, run, stream):
    encoder = BertSection(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, vocab_size=512)
    console = Console(config.model_copy(update={"model": encoder}), run, rank=0, world_size=64, stream=stream)
    console.end(4769, seconds=3720, checkpoint=run.step(4769))
    text = stream.getvalue()
    assert "  megatrain export runs/llama-125m exported/llama-125m\n" in text
    assert "megatrain generate" not in text


def test_a_stopped_run_says_where_it_is_saved(console, run, stream):
    console.stopped(40, "SIGTERM", run.step(40))
    assert "step 40/4,769 on SIGTERM, saved checkpoints/step-00000040" in stream.getvalue()


def test_only_rank_0_prints(config, run, stream, step_metrics):
    console = Console(config, run, rank=1, world_size=64, stream=stream)
    console.header()
    console.write(10, step_metrics())
    console.end(10, seconds=1, checkpoint=None)
    console.close()
    assert stream.getvalue() == ""


def test_each_line_is_flushed(config, run, tmp_path: Path, step_metrics):
    log = tmp_path / "log"
    with open(log, "w", encoding="utf-8") as file:  # a file is block-buffered
        Console(config, run, rank=0, world_size=64, stream=file).write(10, step_metrics())
        assert log.read_text(encoding="utf-8").startswith("step 10/4,769")


def test_a_reader_that_has_gone_does_not_end_the_run(config, run, step_metrics):
    reader, writer = os.pipe()
    os.close(reader)
    console = Console(config, run, rank=0, world_size=64, stream=os.fdopen(writer, "w"))
    console.write(10, step_metrics())
    console.write(20, step_metrics(20))
    assert console._stream is None, "it is not written to again"


def test_a_terminal_keeps_a_bar_below_the_lines(config, run, step_metrics):
    master, slave = os.openpty()
    terminal = os.fdopen(slave, "w")
    console = Console(config, run, rank=0, world_size=64, stream=terminal)
    console.write(1010, step_metrics(1010))
    console.close()
    terminal.close()
    shown = read_all(master)
    assert "step 1,010/4,769  loss 3.412" in shown
    assert "1010/4769" in shown  # the bar's own count


def read_all(descriptor: int) -> str:
    """What a terminal whose other end is closed was sent; it comes in pieces."""
    pieces = []
    with contextlib.suppress(OSError):  # EIO: the end
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
    os.close(descriptor)
    return b"".join(pieces).decode()


def test_a_warmup_of_the_batch_size_is_told(config, run, stream):
    stages = [{"until_sample": 65_536, "global_batch_size": 64}, {"until_sample": 131_072, "global_batch_size": 128}]
    training = config.training.model_copy(update={"batch_size_warmup": [BatchSizeStage(**stage) for stage in stages]})
    console = Console(config.model_copy(update={"training": training}), run, rank=0, world_size=64, stream=stream)
    seconds = [{"global_batch_size": 64, "step_seconds": 1.0}, {"global_batch_size": 128, "step_seconds": 2.0}]
    console.header({"mfu": 0.46, "step_seconds": 4.0, "batch_size_warmup": seconds})
    # 1,024 steps of 64, 512 of 128, and 4,257 of 256: 1,024 + 1,024 + 17,028 s
    assert "2.50B tokens = 5,793 steps of 131,072 to 524,288 · planned 46% MFU, 5h17m" in stream.getvalue()
    console.resumed(Progress(1000, 64_000), run.step(1000), saved_ranks=64, saved_layout="a", layout="a")
    assert "4,793 steps of 131,072 to 524,288 to go" in stream.getvalue()
    left = config.training.tokens - 64_000 * 2048
    console.write(1000, {"step_seconds": 1.0, "tokens": 64_000 * 2048, "tokens_per_second": left / 7200})
    assert "eta 2h00m" in stream.getvalue()
