"""The page that shows what a store holds."""

import re

import numpy as np
import pytest

from data.overview import write_overview
from data.show import main
from data.svg import styled


def cells(page, session):
    row = re.search(rf"<tr><td>{re.escape(session)}</td>(.*?)</tr>", page)[1]
    return re.findall(r"<td>(.*?)</td>", row)


def headings(page):
    return re.findall(r"<th>(.*?)</th>", page)


def test_the_table_counts_what_the_recordings_hold(recordings, tmp_path):
    told = []
    page = write_overview(recordings, tmp_path / "page.html", on_session=told.append).read_text()
    assert told == [recording.session for recording in recordings]
    for recording in recordings:
        found = dict(zip(headings(page), [recording.session, *cells(page, recording.session)], strict=True))
        assert found["neurons"] == str(len(recording.neurons.ids))
        assert int(found["with responses"]) == sum(trial.has_responses for trial in recording.trials)
        for tier in {trial.tier for trial in recording.trials}:
            assert int(found[tier]) == sum(trial.tier is tier for trial in recording.trials)
    ids = [{trial.video_id for trial in recording.trials} for recording in recordings]
    assert cells(page, recordings[0].session)[-1] == str(len(ids[0] & ids[1]))


def test_each_kind_of_stimulus_is_shown_and_every_session_has_its_pictures(recordings, tmp_path):
    page = write_overview(recordings, tmp_path / "page.html").read_text()
    assert page.count("<figure") == 3 * len(recordings)
    for kind in {trial.stimulus for recording in recordings for trial in recording.trials}:
        assert all(word in page for word in kind.split("_"))
    # Nothing comes from elsewhere.
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_a_recording_without_responses_has_no_picture_of_activity(recordings, tmp_path, monkeypatch):
    from data import overview

    with styled():
        assert overview._draw_activity(recordings[0], []) is None
        assert overview._draw_activity(recordings[0], recordings[0].trials[:1]) is not None


def test_trials_are_spread_over_the_recording(recordings):
    from data.overview import _spread

    trials = recordings[0].trials
    assert _spread(trials)[0] is trials[0]
    assert _spread(trials)[-1] is trials[-1]
    assert _spread([]) == []
    assert len(_spread(trials * 30)) == 24
    assert (np.diff([trials.index(trial) for trial in _spread(trials)]) > 0).all()


def test_no_recordings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="recordings is empty"):
        write_overview([], tmp_path / "page.html")


def test_the_command_writes_beside_the_store_and_names_a_missing_one(recordings, tmp_path, capsys):
    page = tmp_path / "there.html"
    assert main([str(recordings[0].store), "--to", str(page)]) == 0
    assert page.is_file()
    assert main([str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().out
