import pytest

from megatrain.base.errors import ConfigError
from megatrain.base.registry import Registry, load_object


def test_entries_are_found_by_name_in_order():
    registry: Registry[int] = Registry("optimizer")
    registry.register("adamw", 1)
    registry.register("lion", 2)
    assert registry.get("lion") == 2
    assert registry.names() == ("adamw", "lion")
    assert list(registry) == [("adamw", 1), ("lion", 2)]
    assert "adamw" in registry
    assert "muon" not in registry


def test_an_unknown_name_gets_a_suggestion():
    registry: Registry[int] = Registry("optimizer")
    registry.register("adamw", 1)
    with pytest.raises(ConfigError, match=r"optimizer 'adamv' is not known. Did you mean adamw\?"):
        registry.get("adamv")
    with pytest.raises(ConfigError, match="There are: adamw"):
        registry.get("x")


def test_a_name_is_registered_once_unless_it_is_the_same_entry():
    registry: Registry[int] = Registry("schedule")
    registry.register("cosine", 1)
    registry.register("cosine", 1)
    with pytest.raises(ConfigError, match="schedule 'cosine' is already registered"):
        registry.register("cosine", 2)


def test_load_object_imports_when_asked():
    assert load_object("json:dumps")({}) == "{}"
    with pytest.raises(ConfigError, match="there is no module nowhere"):
        load_object("nowhere.at_all:x")
    with pytest.raises(ConfigError, match="the module has no 'nothing'"):
        load_object("json:nothing")
