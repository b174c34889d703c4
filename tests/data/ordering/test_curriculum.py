from megatrain.config import DataSection
from megatrain.data.ordering.curriculum import CurriculumStage, curriculum, samples_per_stage

SOURCES = [{"path": "a", "weight": 3.0}, {"path": "b"}]


def stages(*of):
    return curriculum(DataSection.model_validate({"sequence_length": 32, "train": SOURCES, "stages": list(of)}))


def test_without_stages_there_is_one():
    assert stages() == [CurriculumStage(0, (3.0, 1.0), 32)]


def test_a_stage_changes_what_it_names_and_the_first_begins_at_once():
    found = stages({"from_sample": 10, "weights": [1.0, 1.0]}, {"from_sample": 20, "sequence_length": 8})
    assert found == [
        CurriculumStage(0, (3.0, 1.0), 32),
        CurriculumStage(10, (1.0, 1.0), 32),
        CurriculumStage(20, (3.0, 1.0), 8),
    ]
    assert stages({"from_sample": 0, "sequence_length": 8}) == [CurriculumStage(0, (3.0, 1.0), 8)]


def test_samples_of_each_stage():
    found = stages({"from_sample": 10}, {"from_sample": 20})
    assert samples_per_stage(found, 25) == [10, 10, 5]
    assert samples_per_stage(found, 15) == [10, 5, 0]
    assert samples_per_stage(found, 3) == [3, 0, 0]
