"""What a continued pretraining takes from its base."""

from pathlib import Path

import pytest

from launcher.planning.continued import mixed
from launcher.planning.resolve import complete_model, run_folder
from launcher.preflight.checks import examine
from megatrain.base.errors import ConfigError
from megatrain.config import Source
from megatrain.config.file import dump_config, parse_config
from tests.launcher.conftest import saved, write_data

CONTINUED = """
run: {name: more}
continued: {base: runs/tiny, replay: 0.2}
data: {sequence_length: 128, train: [{path: data/new, weight: 3.0}]}
training: {steps: 20, global_batch_size: 8}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 2}
"""
OTHER_MODEL = "model: {num_hidden_layers: 3, hidden_size: 64, num_attention_heads: 4, intermediate_size: 128}\n"


@pytest.fixture
def base(tiny, here):
    write_data(here / "data" / "train")
    write_data(here / "data" / "more")
    write_data(here / "data" / "new")
    config = tiny("data.train=[{path: data/train, weight: 1.0}, {path: data/more, weight: 3.0}]")
    run = run_folder(config)
    run.path.mkdir(parents=True)
    run.config.write_text(dump_config(config))
    saved(run, 20)
    return config


def shares(sources) -> dict[str, float]:
    total = sum(source.weight for source in sources)
    return {source.path: source.weight / total for source in sources}


def test_shares_of_the_samples() -> None:
    new, old = [Source(path="a", weight=5.0)], [Source(path="b", weight=1.0), Source(path="c", weight=3.0)]
    found = mixed(new, old, 0.2)
    assert shares(found) == pytest.approx({"a": 0.8, "b": 0.05, "c": 0.15})
    assert [source.replayed for source in found] == [False, True, True]
    assert mixed(new, old, 0.0) == tuple(new)


def test_model_and_sources_are_the_bases(base) -> None:
    config = parse_config(CONTINUED)
    assert config.model == base.model
    complete = complete_model(config)
    assert shares(complete.data.train) == pytest.approx({"data/new": 0.8, "data/train": 0.05, "data/more": 0.15})
    assert complete_model(parse_config(dump_config(complete))) == complete, "a run's own file is complete"
    assert complete_model(parse_config(CONTINUED.replace("runs/tiny", "runs/tiny/checkpoints/step-00000020"))).data == (
        complete.data
    )
    found = examine(config)
    assert found.errors == []
    assert "continued.replay: 20.0% of the samples are from data/train, data/more" in [
        note.text for note in found.notes
    ]


def test_the_mixture_is_that_of_the_bases_last_phase(base) -> None:
    phases = ["data.phases=[{from_sample: 8, weights: [1.0, 0.0]}, {from_sample: 16, sequence_length: 64}]"]
    run_folder(base).config.write_text(dump_config(parse_config(dump_config(base), overrides=phases)))
    complete = complete_model(parse_config(CONTINUED))
    assert shares(complete.data.train) == pytest.approx({"data/new": 0.8, "data/train": 0.2})


def test_a_run_that_has_begun_needs_its_base_no_more(base, here: Path) -> None:
    complete = complete_model(parse_config(CONTINUED))
    run = run_folder(complete)
    run.path.mkdir(parents=True)
    run.config.write_text(dump_config(complete))
    saved(run, 3)
    run_folder(base).config.rename(here / "moved.yaml")
    assert complete_model(parse_config(CONTINUED)) == complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("runs/tiny", "runs/gone"), "continued.base: 'runs/gone': is not a run of megatrain"),
        (("replay: 0.2", "replay: 1.0"), "continued.replay: 1.0: must be less than 1"),
        (
            ("weight: 3.0}]", "weight: 3.0}], phases: [{from_sample: 8, sequence_length: 64}]"),
            "continued.replay: 0.2: cannot be mixed into data.phases",
        ),
        (("data:", OTHER_MODEL + "data:"), "model: is not the base's"),
    ],
)
def test_what_is_refused(base, change, message) -> None:
    with pytest.raises(ConfigError) as error:
        complete_model(parse_config(CONTINUED.replace(*change)))
    assert message in str(error.value)


def test_a_base_without_a_checkpoint(base) -> None:
    for step in run_folder(base).steps():
        (run_folder(base).step(step) / "MANIFEST.json").unlink()
    assert any(
        "continued.base: runs/tiny has no checkpoint yet" in error.text
        for error in examine(parse_config(CONTINUED)).errors
    )
