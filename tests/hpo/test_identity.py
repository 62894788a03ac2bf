import pytest

from hpo.identity import StudyError, is_outdated, require_same

MADE = {
    "space": {"name": "vivit", "scale": "demo", "ranges": {"model.patch": [1, 4]}},
    "base": {"epochs": 9},
    "recordings": {"mouse": "aaaa"},
    "seed": 0,
    "pinned": {},
}


@pytest.mark.parametrize(
    "changed",
    [
        {"recordings": {"mouse": "bbbb"}},
        {"base": {"epochs": 9, "lr": 0.1}},
        {"space": {"name": "vivit", "scale": "demo", "ranges": {"model.patch": [1, 8]}}},
    ],
)
def test_another_recipe_space_or_simulation_of_the_same_mice_is_an_update_of_the_code(tmp_path, changed):
    require_same(tmp_path, MADE)
    assert is_outdated(tmp_path, MADE | changed)
    with pytest.raises(StudyError, match="Use --fresh to archive it"):
        require_same(tmp_path, MADE | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"seed": 1},
        {"pinned": {"model.patch": "2"}, "base": {"epochs": 3}},
        {"recordings": {"other mouse": "aaaa"}},
    ],
)
def test_what_a_user_changes_is_not_an_update(tmp_path, changed):
    require_same(tmp_path, MADE)
    assert not is_outdated(tmp_path, MADE | changed)


def test_no_study_and_a_broken_one_are_not_outdated(tmp_path):
    assert not is_outdated(tmp_path, MADE)
    (tmp_path / "study.json").write_text("{")
    assert not is_outdated(tmp_path, MADE)
