"""Hardware profiles: all that ship are whole and plausible; a mistake in one names its file and field."""

import pytest

from launcher.planning.hardware import GIB, known_profiles, load_hardware
from megatrain.base.errors import ConfigError

SHIPPED = {"a100-40gb", "a100-80gb", "b200", "cpu", "h100-96gb-500w", "h100-sxm", "h200", "l40s", "mi300x"}


def test_all_that_are_promised_ship():
    assert set(known_profiles()) == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_profile_is_plausible(name):
    hardware = load_hardware(name, 1)
    assert hardware.bf16_tflops <= hardware.peak_tflops, "nothing runs above its peak"
    assert hardware.fp32_tflops < hardware.bf16_tflops or hardware.device == "cpu"
    assert hardware.network.bandwidth <= hardware.link.bandwidth
    assert hardware.memory_bytes > GIB


def test_the_ranks_of_a_cpu_node_share_it():
    one, two = load_hardware("cpu", 1), load_hardware("cpu", 2)
    assert two.memory_bytes == one.memory_bytes // 2
    assert two.peak_tflops == one.peak_tflops / 2
    one, two = load_hardware("h200", 1), load_hardware("h200", 2)
    assert two.model_dump(exclude={"host"}) == one.model_dump(exclude={"host"})
    assert (two.host.memory_gib, two.host.link) == (one.host.memory_gib / 2, one.host.link)


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(ConfigError, match=r"cluster.hardware: 'h1000'.*h100-sxm"):
        load_hardware("h1000", 1)


def test_a_file_of_ones_own(tmp_path):
    own = tmp_path / "own.yaml"
    text = """
device: cpu
cores_per_node: 4
memory_gib: 8.0
bf16_tflops_per_core: 0.1
fp32_tflops_per_core: 0.05
training_efficiency: 0.5
memory_bandwidth: 10
link: {bandwidth: 1, latency: 100}
network: {bandwidth: 1, latency: 100}
"""
    own.write_text(text, encoding="utf-8")
    assert load_hardware(str(own), 2).peak_tflops == pytest.approx(0.2)
    own.write_text(text.replace("device", "dvice"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own.yaml: dvice"):
        load_hardware(str(own), 2)
    own.write_text(text.replace("cores_per_node: 4", "cores_per_node: none"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own.yaml: cores_per_node"):
        load_hardware(str(own), 2)
    own.write_text("[", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own.yaml: cannot be read"):
        load_hardware(str(own), 2)
    with pytest.raises(ConfigError, match="no such file"):
        load_hardware(str(tmp_path / "absent.yaml"), 2)
