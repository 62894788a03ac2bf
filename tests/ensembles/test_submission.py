import json
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_builds import build, tiny_plan

from data.recording import Tier
from ensembles.fusion import predict_fused
from ensembles.manifest import EnsembleManifest
from ensembles.submission import (
    FILES,
    Submission,
    SubmissionWriter,
    cut_frames,
    read_submission,
    require_withheld,
    submit,
)
from training.encoders import load_encoder

# Writing to a loaded disk can take most of a minute.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def finished(recordings, tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("builds") / "tiny")
    build(plan, recordings)
    return plan.folder


def test_rows_have_the_benchmarks_columns_and_types(tmp_path):
    path = tmp_path / "file.parquet.brotli"
    rng = np.random.default_rng(0)
    rows = [
        ("mouse-a", 4, rng.random((3, 7)).astype(np.float32), [5, 9, 12]),
        ("mouse-b", 2, rng.random((2, 5)).astype(np.float32), [1, 2]),
    ]
    with SubmissionWriter(path) as writer:
        for session, trial, predicted, ids in rows:
            writer.write(session, trial, predicted, np.array(ids))
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == ["mouse", "trial_indices", "prediction", "neuron_ids"]
    assert file.schema_arrow.field("prediction").type == pa.list_(pa.list_(pa.float32()))
    assert file.metadata.row_group(0).column(2).compression == "BROTLI"
    # The starter kit reads it with pandas.
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["mouse", "trial_indices", "prediction", "neuron_ids"]
    for (session, trial, predicted, ids), (_, row) in zip(rows, frame.iterrows(), strict=True):
        assert (row["mouse"], row["trial_indices"], list(row["neuron_ids"])) == (session, trial, ids)
        np.testing.assert_array_equal(np.stack(list(row["prediction"])), predicted)


def test_an_interrupted_file_has_no_name(tmp_path):
    path = tmp_path / "file.parquet.brotli"
    with pytest.raises(ValueError, match="not finite"), SubmissionWriter(path) as writer:
        writer.write("mouse", 1, np.full((2, 3), np.nan), np.array([1, 2]))
    assert not path.exists()


@pytest.mark.parametrize(
    ("num_frames", "frames", "expected"),
    [(300, 250, (50, 300)), (300, 249, (50, 299)), (239, 249, (50, 238)), (305, 250, (50, 300))],
)
def test_submitted_frames_begin_at_50_and_end_at_300(num_frames, frames, expected):
    first = 30
    stop = min(num_frames, 300)
    predicted = np.arange(first, stop)[None].astype(np.float32)
    cut = cut_frames(
        predicted, (first, stop), num_frames=num_frames, drop_last=Submission(frames=frames).drop_last
    )
    np.testing.assert_array_equal(cut[0], np.arange(*expected))


def test_frames_that_are_not_predicted_are_an_error():
    with pytest.raises(ValueError, match="frames 50 to 300 must be submitted"):
        cut_frames(np.zeros((1, 240)), (60, 300), num_frames=300, drop_last=False)
    with pytest.raises(ValueError, match="--frames is 248"):
        Submission(frames=248)


def test_the_main_track_holds_every_withheld_trial_as_predicted_together(finished, recordings):
    (path,) = submit(finished, recordings, Submission(tracks=("main",)))
    manifest = EnsembleManifest.read(finished)
    fusion = manifest.fusion(finished)
    encoders = {
        name: load_encoder(manifest.member(name).checkpoint.locate(finished).parent)
        for name in fusion.members
    }
    new = recordings[1]
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [FILES[Tier.LIVE_MAIN], FILES[Tier.FINAL_MAIN]]
        archive.extractall(finished / "unzipped")
    for tier in (Tier.LIVE_MAIN, Tier.FINAL_MAIN):
        trials = [trial for trial in new.trials if trial.tier is tier]
        wanted = {one.trial.index: one for one in predict_fused(fusion, encoders, new, trials)}
        rows = list(read_submission(finished / "unzipped" / FILES[tier]))
        # The old mouse's responses are public: nothing of it is submitted.
        assert [(session, trial) for session, trial, *_ in rows] == [(new.session, t.index) for t in trials]
        for _, index, predicted, ids in rows:
            assert ids == list(new.neurons.ids)
            one = wanted[index]
            np.testing.assert_array_equal(
                predicted, one.predicted[:, 50 - one.frames[0] : one.trial.num_frames - one.frames[0]]
            )


def test_complete_files_are_kept_and_others_written_anew(finished, recordings):
    written = []

    def note(*progress):
        written.append(progress[0])

    submit(finished, recordings, Submission(tracks=("main",)), on_trial=note)
    written.clear()
    submit(finished, recordings, Submission(tracks=("main",)), on_trial=note)
    assert written == []
    submit(finished, recordings, Submission(tracks=("main",), frames=249), on_trial=note)
    assert set(written) == {FILES[Tier.LIVE_MAIN], FILES[Tier.FINAL_MAIN]}
    sidecar = json.loads((finished / "submission" / f"{FILES[Tier.LIVE_MAIN]}.json").read_text())
    assert sidecar["frames"] == 249


def test_a_track_without_withheld_trials_is_refused(recordings):
    with pytest.raises(ValueError, match="track bonus needs live_test_bonus"):
        require_withheld(recordings, Submission())
    require_withheld(recordings, replace(Submission(), tracks=("main",)))
