import json

import pytest
import torch

from training.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    SessionIdentity,
    check_sessions,
    load_checkpoint,
    newest_usable,
    read_info,
    save_checkpoint,
)


def info(*sessions, epoch=1):
    return CheckpointInfo(
        spec={"model.depth": 3}, sessions=tuple(sessions), epoch=epoch, score=0.25, versions={"torch": "2"}
    )


def state():
    return {"encoder": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 1, "names": ["a", "b"]}


def test_what_was_saved_is_loaded(tmp_path):
    saved = save_checkpoint(tmp_path / "epoch-0001", state(), info())
    loaded, described = load_checkpoint(tmp_path / "epoch-0001")
    assert described == saved
    torch.testing.assert_close(loaded["encoder"]["weight"], state()["encoder"]["weight"])
    assert loaded["names"] == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_one_changed_byte_is_found(tmp_path):
    folder = tmp_path / "epoch-0001"
    save_checkpoint(folder, state(), info())
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="use the checkpoint before it"):
        load_checkpoint(folder)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path):
    folders = [tmp_path / f"epoch-{epoch:04d}" for epoch in (1, 2, 3)]
    for epoch, folder in enumerate(folders, start=1):
        save_checkpoint(folder, state(), info(epoch=epoch))
    (folders[2] / "state.pt").write_bytes(b"")
    (folders[1] / "checkpoint.json").unlink()
    assert newest_usable(folders[::-1]) == folders[0]


def test_an_object_in_a_checkpoint_is_never_unpickled(tmp_path):
    folder = tmp_path / "epoch-0001"
    saved = save_checkpoint(folder, state(), info())
    torch.save({"encoder": pytest.raises}, folder / "state.pt")
    described = json.loads((folder / "checkpoint.json").read_text())
    from training.checkpoint import sha256_of

    described["sha256"] = sha256_of(folder / "state.pt")
    (folder / "checkpoint.json").write_text(json.dumps(described))
    assert saved.sha256 != described["sha256"]
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        load_checkpoint(folder)


def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "epoch-0001", state(), info())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "epoch-0002", state(), info(epoch=2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]
    assert load_checkpoint(tmp_path / "epoch-0001")[1].epoch == 1


def test_another_format_is_refused(tmp_path):
    folder = tmp_path / "epoch-0001"
    save_checkpoint(folder, state(), info())
    described = json.loads((folder / "checkpoint.json").read_text()) | {"format": 99}
    (folder / "checkpoint.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"format of .* is 99, but this version reads 1"):
        read_info(folder)


def test_other_sessions_and_neurons_are_refused_with_all_differences(tmp_path, recordings):
    first, second = recordings
    known = SessionIdentity.of(first)
    fewer = SessionIdentity(
        session=second.session, num_neurons=3, neurons_sha256="x", fingerprint=second.fingerprint
    )
    check_sessions(info(known), [first], source=tmp_path)
    with pytest.raises(
        CheckpointError, match=f"{second.session} has {len(second.neurons.ids)} neurons, it has 3"
    ):
        check_sessions(info(known, fewer), recordings, source=tmp_path)
    with pytest.raises(CheckpointError, match=f"{second.session} is not in it"):
        check_sessions(info(known), recordings, source=tmp_path)
