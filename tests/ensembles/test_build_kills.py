"""A build that is killed in any phase goes on, and ends as one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_builds import build, tiny_plan

from ensembles.verification import verify

PROGRAM = Path(__file__).parents[1] / "tiny_builds.py"

MOMENTS = (
    "epoch seed-1 1",  # while a member trains
    "epoch seed-1 2",  # between training and its predictions
    "ended seed-2",  # between members
    "phase reading",  # while evidence is gathered
    "phase scoring",  # while report and manifest are written
)


def run_until(moment, store, folder):
    """Run the build and kill it when it prints ``moment``; return all lines."""
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(store), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=PROGRAM.parents[1],
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if moment is not None and line.startswith(moment):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    return lines


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_build_killed_in_every_phase_ends_as_one_that_was_not(recordings, tmp_path):
    store, folder = recordings[0].store, tmp_path / "killed" / "tiny"
    lines = []
    for moment in MOMENTS:
        lines += run_until(moment, store, folder)
        assert lines[-1].startswith(moment)
        assert not (folder / "ensemble.json").exists()
    lines += run_until(None, store, folder)
    assert lines[-1] == "done"
    # No epoch that was finished is trained twice.
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == len(set(epochs))
    plan = tiny_plan(tmp_path / "whole" / "tiny")
    build(plan, recordings)
    killed, whole = (json.loads((of / "ensemble.json").read_text()) for of in (folder, plan.folder))
    for manifest in (killed, whole):
        del manifest["time"]
    assert killed == whole
    assert all(finding.holds for finding in verify(folder, recordings))
