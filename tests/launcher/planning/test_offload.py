"""ZeRO-Offload in plans: taken where nothing else fits, with what it costs of the host."""

import re

import pytest

from launcher.commands.render import plan_text
from launcher.installation import shipped
from launcher.planning.hardware import GIB, load_hardware
from launcher.planning.layout import Layout
from launcher.planning.memory import HOST_USABLE, estimate_memory
from launcher.planning.offload import copied_bytes, device_bytes, host_bytes
from launcher.planning.plan import NothingFitsError, decided, make_plan
from launcher.planning.zero import local_parameters, zero_bytes
from megatrain.base.errors import ConfigError
from tests.launcher.planning.test_plan import LLAMA_8B
from tests.launcher.shapes import MODEL

ONE_NODE = (*LLAMA_8B, "cluster.gpus_per_node=2")  # 8B on two GPUs: 16 bytes a parameter are 64 GB for each, and more


def layout(stage: int, offload: str = "cpu", steps: int = 2, ranks: int = 2) -> Layout:
    return Layout(
        tensor_parallel=1,
        data_parallel=ranks,
        zero_stage=stage,
        sequence_parallel=False,
        micro_batch_size=1,
        gradient_accumulation_steps=steps,
        activation_checkpointing="none",
        offload_optimizer=offload,  # type: ignore[arg-type]
    )


def test_it_is_taken_only_where_nothing_else_fits(tiny):
    everywhere = make_plan(tiny(*LLAMA_8B)).candidates
    assert {plan.layout.offload_optimizer for plan in everywhere} == {"none"}
    with pytest.raises(NothingFitsError):
        make_plan(tiny(*ONE_NODE, "parallel.offload_optimizer=none"))
    config = tiny(*ONE_NODE)
    report = make_plan(config)
    assert {plan.layout.offload_optimizer for plan in report.candidates} == {"cpu"}
    assert report.chosen.zero_stage > 0
    assert decided(config, report.chosen).parallel.offload_optimizer == "cpu"
    text = plan_text(decided(config, report.chosen), report)
    assert "recompute, optimizer on the host" in text or "blocks, optimizer on the host" in text
    host = report.chosen.memory.host
    assert f"{host / GIB:.2f} of 1000.0 GiB per rank" in text
    assert report.chosen.to_json()["memory_bytes"]["host"] == host


def test_where_it_is_asked_for_it_frees_the_device_and_costs_time(tiny):
    stage = ("parallel.zero_stage=2", "parallel.tensor_parallel=2", "training.micro_batch_size=1")
    fixed = (*LLAMA_8B, *stage, "parallel.activation_checkpointing=full", "parallel.sequence_parallel=true")
    fixed = (*fixed, "parallel.context_parallel=1", "parallel.recompute_blocks=all")
    (kept,) = make_plan(tiny(*fixed)).candidates
    (offloaded,) = make_plan(tiny(*fixed, "parallel.offload_optimizer=cpu")).candidates
    assert kept.memory.optimizer - offloaded.memory.optimizer == pytest.approx(12 * 8.03e9 / 8, rel=0.01)
    assert offloaded.memory.total < kept.memory.total
    assert kept.memory.host == 0 < offloaded.memory.host
    part = 8.03e9 / 8  # 2 slices × 4 replicas
    extra = offloaded.time.total - kept.time.total
    # 6 bytes of each over 45 GB/s, and 42 over an eighth of 300 GB/s, less an update on the device
    assert extra == pytest.approx(part * (6 / 45e9 + 42 / 37.5e9), rel=0.05)


def test_the_host_limits_it(tmp_path, tiny):
    profile = (shipped("configs/hardware") / "h100-sxm.yaml").read_text()
    small = re.sub(r"host: \{memory_gib: \d+", "host: {memory_gib: 100", profile)
    (tmp_path / "small.yaml").write_text(small)
    hardware = f"cluster.hardware={tmp_path / 'small.yaml'}"
    with pytest.raises(
        NothingFitsError, match=rf"GiB of its host per rank, and {50 * HOST_USABLE:.1f} GiB can be used"
    ):
        make_plan(tiny(*ONE_NODE, hardware, "parallel.offload_optimizer=cpu"))
    (tmp_path / "none.yaml").write_text(re.sub(r"\nhost: .*", "", profile))
    hardware = f"cluster.hardware={tmp_path / 'none.yaml'}"
    with pytest.raises(ConfigError, match=r"offload_optimizer: cpu: none does not say what its host has"):
        make_plan(tiny(*LLAMA_8B, hardware, "parallel.offload_optimizer=cpu"))
    with pytest.raises(NothingFitsError):  # auto does not take what it does not know
        make_plan(tiny(*ONE_NODE, hardware))


def test_a_cpu_rank_is_its_own_host(tiny):
    plans = make_plan(tiny("parallel.offload_optimizer=cpu", "parallel.zero_stage=2")).candidates
    assert plans
    assert all(plan.memory.host == 0 for plan in plans)
    one = {"sequence_length": 64, "precision": "bf16"}
    cpu, gpu = (
        estimate_memory(MODEL, layout(2), hardware=load_hardware(name, 2), **one) for name in ("cpu", "h100-sxm")
    )
    assert cpu.optimizer == pytest.approx(host_bytes(MODEL, layout(2), "bf16").standing)
    assert gpu.optimizer == 0


def test_it_needs_zero(tiny):
    with pytest.raises(NothingFitsError, match="offload_optimizer=cpu needs zero_stage 1, 2 or 3"):
        make_plan(tiny("parallel.offload_optimizer=cpu", "parallel.zero_stage=0"))


@pytest.mark.parametrize(("stage", "bytes_each"), [(1, 8 + 8 + 2), (2, 8 + 8 + 2), (3, 12 + 8)])
def test_bytes_of_the_host_in_bf16(stage, bytes_each):
    part = local_parameters(MODEL, 1) / 2
    largest = MODEL.padded_vocab_size * MODEL.hidden_size
    buffer = 2 * largest if stage < 3 else 0
    assert host_bytes(MODEL, layout(stage), "bf16").standing == pytest.approx(bytes_each * part + buffer, rel=0.01)
    assert host_bytes(MODEL, layout(stage, "none"), "bf16").peak == 0
    kept, offloaded = zero_bytes(MODEL, layout(stage), "bf16"), device_bytes(MODEL, layout(stage), "bf16")
    assert (offloaded.optimizer, offloaded.parameters) == (0, kept.parameters)


def test_bytes_that_are_copied():
    part = local_parameters(MODEL, 1) / 2
    assert copied_bytes(MODEL, layout(2), "bf16") == 6 * part  # fp32 gradients there, bf16 weights back
    assert copied_bytes(MODEL, layout(3, steps=4), "bf16") == (8 * 4 + 8) * part
    assert copied_bytes(MODEL, layout(2, steps=4), "fp32") == (8 * 4 + 8) * part
    assert copied_bytes(MODEL, layout(1, steps=4), "fp32") == 8 * part
