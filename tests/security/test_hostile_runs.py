"""Checkpoints, predictions, run folders and studies made to do harm are refused in words; no code runs."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hostile import RunsCode, deep_json, pickled_array, saved
from hpo_search import search
from training_runs import tiny_spec

from hpo.command import search_command
from hpo.identity import StudyError
from hpo.search import parse_arguments as search_arguments
from training.checkpoint import CheckpointError, load_checkpoint, newest_usable, read_info
from training.command import run_command
from training.prediction_info import PredictionError, PredictionInfo
from training.predictions import PredictionStore
from training.run import run
from training.run_folder import read_json
from training.spec import from_plain, to_plain
from training.spool import EVENTS_FILE, Spool
from training.train import parse_arguments as run_arguments


@pytest.fixture(scope="module")
def trained(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = run(tiny_spec(epochs=1), recordings, folder)
    return result.checkpoint


@pytest.fixture
def checkpoint(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "checkpoint")


def describe(checkpoint, **changes):
    path = checkpoint / "checkpoint.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def exchange_state(checkpoint, content):
    (checkpoint / "state.pt").write_bytes(content)
    describe(checkpoint, sha256=hashlib.sha256(content).hexdigest())


def test_a_checkpoint_that_runs_code_does_not_though_its_hash_is_right(checkpoint, tmp_path):
    evil = RunsCode(tmp_path / "proof")
    torch.save({"encoder": evil}, tmp_path / "evil.pt")
    for content in ((tmp_path / "evil.pt").read_bytes(), pickle.dumps(evil, protocol=2)):
        exchange_state(checkpoint, content)
        with pytest.raises(CheckpointError, match=r"state\.pt .* never"):
            load_checkpoint(checkpoint)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(1000)])
def test_a_state_that_is_none_is_refused_though_its_hash_is_right(checkpoint, content):
    exchange_state(checkpoint, content)
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        load_checkpoint(checkpoint)


def test_a_changed_state_is_refused_by_its_hash(checkpoint):
    content = bytearray((checkpoint / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        load_checkpoint(checkpoint)
    assert newest_usable([checkpoint]) is None


@pytest.mark.parametrize(
    "text",
    [deep_json(), "[]", "7", "null", '{"sessions": 3}', '{"sessions": [1]}', "\udc80", '{"format": 1}'],
)
def test_a_description_that_is_none_is_refused(checkpoint, text):
    (checkpoint / "checkpoint.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        read_info(checkpoint)
    assert newest_usable([checkpoint]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"sessions": [{"session": "a", "extra": 1}]},
        {"sha256": 7},
        {"epoch": "three"},
        {"spec": "rm -rf"},
        {"surprise": 1},
    ],
)
def test_a_description_with_hostile_fields_is_refused(checkpoint, changes):
    describe(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json|sha256"):
        load_checkpoint(checkpoint)


def plain_spec(**changes):
    plain = to_plain(tiny_spec())
    return plain | {"values": plain["values"] | changes}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({**plain_spec(), "model": "os.system"}, "os.system"),
        ({**plain_spec(), "schedule": "__import__"}, "__import__"),
        (plain_spec(**{"model.__class__": "x"}), "__class__"),
        (plain_spec(epochs="__import__('os')"), "whole number"),
        (plain_spec(epochs=float("inf")), "whole number"),
        (plain_spec(epochs=float("nan")), "whole number"),
        (plain_spec(epochs=-1), "at least 1"),
        ({"model": "vivit"}, "schedule"),
        ({}, "specification"),
    ],
)
def test_a_hostile_specification_is_refused(plain, message):
    with pytest.raises(ValueError, match=message):
        from_plain(plain)


INFO = PredictionInfo(
    member="run",
    session="mouse",
    tier="oracle",
    trials=(3, 5),
    frames=((0, 4), (0, 4)),
    num_neurons=2,
    neurons_sha256="a" * 64,
    fingerprint="b" * 64,
    checkpoint_sha256="c" * 64,
)


@pytest.fixture
def predictions(tmp_path):
    store = PredictionStore(root=tmp_path / "predictions")
    with store.writer(INFO) as writer:
        for trial in INFO.trials:
            writer.write(trial, np.ones((2, 4), np.float32))
    return store


@pytest.mark.parametrize("part", ["..", "", "a/b", "../../etc", "/etc", "a\\b", ".hidden"])
@pytest.mark.parametrize("field", ["member", "session", "tier"])
def test_names_of_predictions_cannot_lead_out(predictions, field, part):
    with pytest.raises(PredictionError, match=field):
        replace(INFO, **{field: part})
    names = {"member": "run", "session": "mouse", "tier": "oracle"} | {field: part}
    with pytest.raises(PredictionError):
        predictions.open(*names.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"member": "../.."},
        {"trials": [3, 3]},
        {"trials": []},
        {"frames": [[0, 10**12], [0, 4]]},
        {"frames": [[4, 0], [0, 4]]},
        {"frames": 7},
        {"num_neurons": -1},
        {"num_neurons": "many"},
        {"dtype": "object"},
        {"format": 99},
    ],
)
def test_a_hostile_sidecar_is_refused(predictions, changes):
    path = predictions.path("run", "mouse", "oracle").with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PredictionError):
        predictions.open("run", "mouse", "oracle")


@pytest.mark.parametrize("text", [deep_json(), "[]", "\x00", "{}"])
def test_a_sidecar_that_is_none_is_refused(predictions, text):
    predictions.path("run", "mouse", "oracle").with_suffix(".json").write_text(text)
    with pytest.raises(PredictionError, match=r"oracle\.json"):
        predictions.open("run", "mouse", "oracle")


def test_exchanged_predictions_are_refused(predictions, tmp_path):
    path = predictions.path("run", "mouse", "oracle")
    for content in (saved(np.ones((2, 2, 5), np.float16)), saved(np.array(["x"])), b"", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(PredictionError, match=r"oracle\.npy"):
            predictions.open("run", "mouse", "oracle")
    pickled_array(path, tmp_path / "proof")
    with pytest.raises(PredictionError, match=r"oracle\.npy"):
        predictions.open("run", "mouse", "oracle")
    assert not (tmp_path / "proof").exists()


def test_one_changed_prediction_is_found_by_its_hash(predictions):
    path = predictions.path("run", "mouse", "oracle")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PredictionError, match="sha256"):
        predictions.open("run", "mouse", "oracle").verify()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_no_numbers_are_not_written(tmp_path, value):
    store = PredictionStore(root=tmp_path)
    with pytest.raises(PredictionError, match="trial 3"), store.writer(INFO) as writer:
        writer.write(3, np.full((2, 4), value, np.float32))


NAMES = ["..", "../evil", "/tmp/evil", "a/../../evil", "a\nb", "x" * 300, "\\evil"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_study_cannot_lead_out_of_its_root(tmp_path, capsys, name):
    root = tmp_path / "deep" / "root"
    code = search_command(search_arguments(["vivit", "--root", str(root), "--name", name, "--fresh"]))
    assert code == 2
    assert "--name" in capsys.readouterr().out
    assert not root.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_run_cannot_lead_out_of_its_root(recordings, tmp_path, capsys, name):
    root = tmp_path / "deep" / "root"
    arguments = ["vivit", "--recordings", str(recordings[0].store), "--runs", str(root), "--name", name]
    assert run_command(run_arguments(arguments)) == 2
    assert "--name" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "setting", ["model.num_heads=__import__('os').getpid()", "__class__=x", "model=os.system", "epochs=1e400"]
)
def test_a_hostile_setting_is_text_and_refused(tmp_path, capsys, setting):
    code = search_command(search_arguments(["vivit", "--root", str(tmp_path / "root"), "--set", setting]))
    assert code == 2
    assert "error:" in capsys.readouterr().out


@pytest.mark.parametrize("text", [deep_json(), "[]", "7", "\x00"])
def test_a_study_with_a_hostile_description_is_refused(tmp_path, text):
    search(tmp_path, total=1)
    (tmp_path / "study" / "study.json").write_text(text)
    with pytest.raises(StudyError, match=r"study\.json"):
        search(tmp_path, total=2)


def test_a_study_whose_storage_is_none_is_refused(tmp_path):
    search(tmp_path, total=1)
    (tmp_path / "study" / "study.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StudyError, match=r"study\.db"):
        search(tmp_path, total=2)


@pytest.mark.parametrize("text", [deep_json(), "[1]", "null", "\x00"])
def test_a_json_file_that_holds_no_object_is_refused(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=r"file\.json"):
        read_json(tmp_path / "file.json")


def test_events_that_are_none_are_passed_over(tmp_path):
    spool = Spool(tmp_path)
    with (tmp_path / EVENTS_FILE).open("wb") as file:
        file.write(
            b'{"kind": "run"}\n\xff\xfe\n' + deep_json().encode() + b"\n[1]\n7\n" + b'{"kind": "tags"}\n'
        )
    kinds = [event["kind"] for event, _ in spool.unsent(limit=100)]
    assert kinds == ["run", "tags"]
