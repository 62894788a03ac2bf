"""The whole command, as a person runs and kills it, over Ray and with MLflow."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.recording import Tier
from ensembles.submission import read_submission
from ensembles.verification import verify

SCRIPT = Path(__file__).parents[2] / "ensembles" / "build.py"


class Build:
    """The command in a process of its own."""

    def __init__(self, recordings, root):
        self.folder = root / "builds" / "it"
        self.arguments = [
            *("seeds", "factorized", "--seeds", "3", "--recordings", str(recordings[0].store)),
            *("--root", str(root), "--name", "it", "--max-concurrent", "2", "--set", "epochs=3"),
            *("--submit", "main", "--frames", "249"),
        ]

    def start(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def kill_when_there_is(self, pattern):
        """Start the command and kill it -9 as soon as a file of the pattern appears that was not there."""
        before = set(self.folder.glob(pattern))
        process = self.start()
        while process.poll() is None and not set(self.folder.glob(pattern)) - before:
            time.sleep(0.01)
        process.kill()
        output = process.communicate()[0]
        assert process.returncode == -9, output

    def finish(self):
        process = self.start()
        output = process.communicate()[0]
        assert process.returncode == 0, output
        return output


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_build_whose_driver_is_killed_ends_as_if_it_had_not_been(recordings, tmp_path):
    build = Build(recordings, tmp_path)
    # While members train in other processes, while one predicts, while files are submitted and published.
    build.kill_when_there_is("members/*/checkpoints/state-*")
    assert not (build.folder / "ensemble.json").exists()
    build.kill_when_there_is("predictions/*/*/*.partial")
    build.kill_when_there_is("submission/*.partial")
    assert (build.folder / "ensemble.json").exists()
    build.kill_when_there_is("serving/ensemble/ensemble.json")
    output = build.finish()
    assert "0 to be trained" in output
    assert re.search(r"striate-ensemble version \d+ is champion", output)

    manifest = json.loads((build.folder / "ensemble.json").read_text())
    assert [member["outcome"] for member in manifest["members"]] == ["finished"] * 3
    results = [json.loads(path.read_text()) for path in build.folder.glob("members/*/result.json")]
    assert [result["epochs"] for result in results] == [3] * 3
    assert all(finding.holds for finding in verify(build.folder, recordings))
    path = build.folder / "submission" / "predictions_live_main.parquet.brotli"
    rows = [(session, trial, predicted.shape) for session, trial, predicted, _ in read_submission(path)]
    wanted = [
        (recording.session, trial.index, (len(recording.neurons.ids), trial.num_frames - 51))
        for recording in recordings
        for trial in recording.trials
        if trial.tier is Tier.LIVE_MAIN and not trial.has_responses
    ]
    assert sorted(rows) == sorted(wanted)

    again = build.finish()
    version = re.search(r"striate-ensemble version (\d+)", output).group(1)
    assert f"striate-ensemble version {version} is champion: it is already" in again
