"""Hosts by name: on the command line and in a hostfile."""

import pytest

from launcher.launch.hosts import Host, parse_hosts, read_hostfile
from megatrain.base.errors import ConfigError


def test_hosts_on_the_command_line_and_in_a_file(tmp_path):
    assert parse_hosts("a, me@b:4", 8) == [Host("a", 8), Host("me@b", 4)]
    (tmp_path / "hostfile").write_text("# two nodes\na slots=4\nb slots=4  # the new one\n\nc\n", encoding="utf-8")
    assert read_hostfile(tmp_path / "hostfile") == [Host("a", 4), Host("b", 4), Host("c", None)]


@pytest.mark.parametrize(
    "text", ["", "a,,b", "a,a", "-oProxyCommand=x", "a;reboot", "a:0", "a:x", "$(id)", "a\n:2", "a:99999"]
)
def test_what_is_no_host(text):
    with pytest.raises(ConfigError, match="host"):
        parse_hosts(text)
