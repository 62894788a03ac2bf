"""A build as a model: in a fresh process, through a real server, and refusing what does not fit."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tiny_builds import build, tiny_plan

from ensembles.fusion import predict_fused
from ensembles.manifest import EnsembleManifest, ManifestError
from ensembles.served import ServedEnsemble, export
from training.encoders import load_encoder

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]

LOAD = """
import pickle, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
import ensembles
print(ensembles.__file__)
row = pickle.load(open(sys.argv[2], "rb"))
answer = model.predict(pd.DataFrame([row]), params={"half": False})
pickle.dump(answer.to_dict("records"), open(sys.argv[3], "wb"))
"""


@pytest.fixture(scope="module")
def finished(recordings, tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("builds") / "tiny")
    build(plan, recordings)
    return plan.folder


@pytest.fixture(scope="module")
def exported(finished, recordings, tmp_path_factory):
    return export(finished, recordings, tmp_path_factory.mktemp("exports") / "ensemble")


@pytest.fixture(scope="module")
def model(finished, recordings, tmp_path_factory):
    from ensembles.serving import save_model

    return save_model(finished, recordings, tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def served(exported):
    return ServedEnsemble(exported, device="cpu")


@pytest.fixture(scope="module")
def asked(recordings):
    """A trial of the second mouse as arrays, and the trial."""
    recording = recordings[1]
    trial = next(trial for trial in recording.trials if trial.tier == "oracle")
    frames = recording.frames(trial, 0, trial.num_frames)
    return recording, trial, (np.array(frames.video), np.array(frames.behavior.T), np.array(frames.pupil.T))


def expected(finished, recording, trial):
    manifest = EnsembleManifest.read(finished)
    fusion = manifest.fusion(finished)
    encoders = {
        name: load_encoder(manifest.member(name).checkpoint.locate(finished).parent)
        for name in fusion.members
    }
    (one,) = predict_fused(fusion, encoders, recording, [trial])
    return one


def test_arrays_are_predicted_as_the_recording_they_are_from(finished, served, asked):
    recording, trial, arrays = asked
    answer, wanted = served.predict(recording.session, *arrays), expected(finished, recording, trial)
    assert answer.first_frame == wanted.frames[0]
    np.testing.assert_allclose(answer.predicted, wanted.predicted, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused_in_words(served, asked):
    recording, _, (video, behavior, pupil) = asked
    session = recording.session
    with pytest.raises(ValueError, match=f"mouse is 'dynamic4002'.*{session}"):
        served.predict("dynamic4002", video, behavior, pupil)
    with pytest.raises(ValueError, match=r"video is \(\d+, 12, 19\), but must be \(frames, 12, 20\)"):
        served.predict(session, video[..., :-1], behavior, pupil)
    with pytest.raises(ValueError, match="video is int64, but must be uint8 or floating"):
        served.predict(session, video.astype(np.int64), behavior, pupil)
    with pytest.raises(ValueError, match=r"behavior is .*, but must be .* as video is"):
        served.predict(session, video, behavior.T, pupil)
    with pytest.raises(ValueError, match="pupil holds NaN"):
        served.predict(session, video, behavior, np.full_like(pupil, np.nan))


def test_fewer_members_can_be_served(exported, asked):
    recording, _, arrays = asked
    one = ServedEnsemble(exported, device="cpu", max_members=1).predict(recording.session, *arrays)
    assert one.predicted.shape == (7, arrays[0].shape[0] - one.first_frame)
    with pytest.raises(ValueError, match="max_members is 0"):
        ServedEnsemble(exported, max_members=0)


@pytest.mark.parametrize(
    "pattern", ["members/*/checkpoints/*/state.pt", "normalizations/*/*.pt", "ensemble.json"]
)
def test_one_changed_byte_is_refused_when_loading(exported, tmp_path, pattern):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    path = next(copy.glob(pattern))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=f"sha256 of .*{path.name}"):
        ServedEnsemble(copy)


def request_of(asked):
    from ensembles.serving import to_bytes

    recording, _, arrays = asked
    return {"mouse": recording.session} | {
        name: to_bytes(array) for name, array in zip(("video", "behavior", "pupil"), arrays, strict=True)
    }


def test_a_saved_model_loads_elsewhere_in_a_fresh_process(finished, model, asked, tmp_path):
    import pickle

    from ensembles.serving import from_bytes

    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    (tmp_path / "row").write_bytes(pickle.dumps(request_of(asked)))
    (tmp_path / "load.py").write_text(LOAD)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "load.py", "moved", "row", "answer"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The code that answers is the model's own copy.
    assert str(moved) in done.stdout
    (answer,) = pickle.loads((tmp_path / "answer").read_bytes())
    recording, trial, _ = asked
    wanted = expected(finished, recording, trial)
    np.testing.assert_allclose(
        from_bytes(answer["predicted"], name="predicted"), wanted.predicted, rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_mlflow_serves_the_mean_and_refuses_in_words(finished, model, asked):
    from ensembles.serving import from_bytes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary = Path(sys.executable).parent
    process = subprocess.Popen(
        [binary / "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local", "-p", str(port)],
        # MLflow starts uvicorn by its name.
        env=os.environ | {"PATH": f"{binary}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/ping", process)
        row = {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in request_of(asked).items()
        }
        answer = post(f"http://127.0.0.1:{port}/invocations", row)
        predicted = from_bytes(base64.b64decode(answer["predictions"][0]["predicted"]), name="predicted")
        recording, trial, _ = asked
        wanted = expected(finished, recording, trial)
        assert answer["predictions"][0]["first_frame"] == wanted.frames[0]
        np.testing.assert_allclose(predicted, wanted.predicted, rtol=1e-5, atol=1e-6)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"http://127.0.0.1:{port}/invocations", row | {"mouse": "dynamic4002"})
        assert "mouse is 'dynamic4002'" in refused.value.read().decode()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(url, process):
    for _ in range(1200):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)


def post(url, row):
    content = json.dumps({"dataframe_records": [row]}).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_the_better_build_on_the_same_data_becomes_champion(finished, recordings, tmp_path):
    from mlflow import MlflowClient

    from ensembles.serving import MODEL, publish
    from training.tracking import Tracker

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(tmp_path / "run", uri=uri, experiment="ensembles", run_id="tiny-1")
    assert tracker.finish("FINISHED", wait_seconds=120)

    def registered(root):
        return publish(root, recordings, uri=uri, run_id="tiny-1", experiment="ensembles")

    first = registered(finished)
    assert first.is_champion
    assert registered(finished).version == first.version
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    change(other, score=-1.0, weights=True)
    worse = registered(other)
    assert not worse.is_champion
    assert "stays champion" in worse.words
    change(other, score=0.9, data="0" * 64)
    assert "other data" in registered(other).words
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    champion = client.get_model_version_by_alias(MODEL, "champion")
    assert champion.version == int(first.version)
    plain = json.loads((finished / "ensemble.json").read_text())
    assert f"| single-trial correlation | {plain['direct']['single_trial']:.4f} |" in champion.description
    for member in plain["members"]:
        assert f"| {member['name']} | {member['architecture']} | {member['seed']} |" in champion.description
    assert all(f"| {session} |" in champion.description for session in plain["data"])
    assert "`champion`" in client.get_registered_model(MODEL).description


def change(root, *, score, weights=False, data=None):
    path = root / "ensemble.json"
    plain = json.loads(path.read_text())
    plain["direct"]["single_trial"] = score
    if weights:
        for of_session in plain["weights"].values():
            names = sorted(of_session)
            of_session.update({name: float(name == names[0]) for name in names})
    if data is not None:
        plain["data_sha256"] = data
    path.write_text(json.dumps(plain))
