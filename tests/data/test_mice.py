import pytest

from data.mice import PUBLIC_MICE, choose_mice
from data.raw_format import SESSION_PATTERN
from data.recording import Stimulus, Tier

BY_LETTER = {mouse.letter: mouse for mouse in PUBLIC_MICE}


def test_the_totals_are_those_of_the_paper():
    assert "".join(BY_LETTER) == "ABCDEFGHIJ"
    assert sum(mouse.num_neurons for mouse in PUBLIC_MICE) == 78_853
    assert sum(mouse.num_neurons for mouse in PUBLIC_MICE if mouse.release == "new") == 40_034
    folder_trials = [740, 720, 740, 720, 739, 711, 682, 711, 739, 712]
    assert [sum(mouse.num_trials) for mouse in PUBLIC_MICE] == folder_trials


def test_partners_are_an_old_and_a_new_mouse_with_the_same_three_bonus_classes():
    assert {(mouse.letter, mouse.partner) for mouse in PUBLIC_MICE if mouse.release == "old"} == {
        ("A", "F"),
        ("B", "J"),
        ("C", "G"),
        ("D", "H"),
        ("E", "I"),
    }
    for mouse in PUBLIC_MICE:
        partner = BY_LETTER[mouse.partner]
        assert partner.partner == mouse.letter
        assert partner.release != mouse.release
        classes = {*mouse.live_bonus, *mouse.final_bonus}
        assert len(classes) == 3
        assert classes == {*partner.live_bonus, *partner.final_bonus}


def test_each_bonus_class_is_live_in_one_and_final_in_two_competition_mice():
    new = [mouse for mouse in PUBLIC_MICE if mouse.release == "new"]
    for stimulus in set(Stimulus) - {Stimulus.MOVIE}:
        assert sum(stimulus in mouse.live_bonus for mouse in new) == 1
        assert sum(stimulus in mouse.final_bonus for mouse in new) == 2


def test_only_old_mice_have_trials_of_no_tier():
    for mouse in PUBLIC_MICE:
        assert (mouse.trials_of_tier[Tier.NONE] > 0) == (mouse.release == "old")
        assert SESSION_PATTERN.fullmatch(mouse.session)


def test_a_zip_lies_in_the_folder_of_its_release():
    assert BY_LETTER["A"].zip_url() == (
        "https://gin.g-node.org/pollytur/Sensorium2023Data/raw/master/"
        "dynamic29156-11-10-Video-8744edeac3b4d1ce16b680916b5267ce.zip"
    )
    assert BY_LETTER["F"].zip_url("http://mirror/") == (
        "http://mirror/sensorium_2023_dataset/raw/master/"
        "dynamic29515-10-12-Video-9b4f6a1a067fe51e15306b9628efea20.zip"
    )


def test_old_mice_have_a_later_release_with_all_responses():
    revision = "798ba8ad041d8f0f0ce879af396d52c7238c2730"
    mouse = BY_LETTER["B"]
    url = f"http://mirror/sensorium_2023_data/raw/{revision}/{mouse.session}.zip"
    assert mouse.zip_url("http://mirror", complete=True) == url
    assert BY_LETTER["G"].zip_url(complete=True) == BY_LETTER["G"].zip_url()


@pytest.mark.parametrize(
    ("names", "letters"),
    [
        (["all"], "ABCDEFGHIJ"),
        (["new", "old"], "ABCDEFGHIJ"),
        (["old"], "ABCDE"),
        (["j", "F", "f"], "FJ"),
        (["dynamic29515"], "F"),
        (["dynamic29755-2-8-Video-9b4f6a1a067fe51e15306b9628efea20.zip", "B"], "BJ"),
    ],
)
def test_mice_are_chosen_by_letter_name_or_group(names, letters):
    assert "".join(mouse.letter for mouse in choose_mice(names)) == letters


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("K", ""),
        ("nwe", "new"),
        ("dynamic29514-2-8-Video-8744", "dynamic29514-2-9"),
        ("dynamic29", ""),
        ("", ""),
    ],
)
def test_an_unknown_mouse_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(ValueError, match=f"mouse is '{name}', but must be .*the nearest is '{nearest}"):
        choose_mice([name])
