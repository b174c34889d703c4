from megatrain.config import DataSection
from megatrain.data.ordering.curriculum import CurriculumPhase, curriculum, samples_per_phase

SOURCES = [{"path": "a", "weight": 3.0}, {"path": "b"}]


def phases(*of):
    return curriculum(DataSection.model_validate({"sequence_length": 32, "train": SOURCES, "phases": list(of)}))


def test_without_stages_there_is_one():
    assert phases() == [CurriculumPhase(0, (3.0, 1.0), 32)]


def test_a_stage_changes_what_it_names_and_the_first_begins_at_once():
    found = phases({"from_sample": 10, "weights": [1.0, 1.0]}, {"from_sample": 20, "sequence_length": 8})
    assert found == [
        CurriculumPhase(0, (3.0, 1.0), 32),
        CurriculumPhase(10, (1.0, 1.0), 32),
        CurriculumPhase(20, (3.0, 1.0), 8),
    ]
    assert phases({"from_sample": 0, "sequence_length": 8}) == [CurriculumPhase(0, (3.0, 1.0), 8)]


def test_samples_of_each_phase():
    found = phases({"from_sample": 10}, {"from_sample": 20})
    assert samples_per_phase(found, 25) == [10, 10, 5]
    assert samples_per_phase(found, 15) == [10, 5, 0]
    assert samples_per_phase(found, 3) == [3, 0, 0]
