"""Storage that is full or read-only for a while: the search ends in words, the same command goes on."""

import os
import shutil
import subprocess
from dataclasses import dataclass

import pytest
from hpo_search import EPOCHS, FastObjective, make_report, make_result, open_study, search, told
from optuna.trial import TrialState

from hpo.driver import Driver, Limits
from hpo.identity import StudyError
from training.results import Outcome

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk takes root"
)


class Disk:
    """A small disk of its own, in memory, that can be filled."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def mount(self, *arguments):
        done = subprocess.run(["mount", *arguments, str(self.folder)], capture_output=True, check=False)
        return done.returncode == 0

    def begin(self):
        return self.mount("-t", "tmpfs", "-o", "size=2m", "tmpfs")

    def go_bad(self):
        with (self.folder / "full").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def get_well(self):
        (self.folder / "full").unlink()

    def end(self):
        subprocess.run(["umount", str(self.folder)], check=True)


class FailingDisk(Disk):
    """A disk that becomes read-only under open files, and forgets what was not synchronized."""

    @property
    def image(self):
        return self.folder.with_name("image")

    def begin(self):
        with self.image.open("wb") as file:
            file.truncate(8 * 2**20)
        made = subprocess.run(["mkfs.ext4", "-q", str(self.image)], capture_output=True, check=False)
        return made.returncode == 0 and self.mount("-o", "loop", str(self.image))

    def go_bad(self):
        # What the kernel does itself when the disk does not answer.
        assert self.mount("-o", "remount,abort")
        with pytest.raises(OSError, match="Read-only file system"):
            (self.folder / "x").touch()

    def get_well(self):
        self.end()
        assert self.mount("-o", "loop", str(self.image))


@pytest.fixture(params=[Disk, FailingDisk])
def disk(request, tmp_path):
    if request.param is FailingDisk and shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4: apt-get install e2fsprogs")
    disk = request.param(tmp_path / "disk")
    if not disk.begin():
        pytest.skip("mounting is not allowed here")
    yield disk
    disk.end()


def test_a_study_that_cannot_be_written_ends_the_search_in_words_and_goes_on_later(tmp_path, disk):
    uninterrupted = search(tmp_path / "whole", total=8)
    log = tmp_path / "log"

    class Breaking:
        def started(self, asked):
            pass

        def epoch(self, number, report):
            if (number, report.epoch) == (4, 1):
                disk.go_bad()

        def ended(self, number, result):
            pass

    with pytest.raises(StudyError, match=r"study.db cannot be written .*the same command goes on"):
        search(disk.folder, total=8, objective=FastObjective(log=log), observers=[Breaking()])
    if isinstance(disk, FailingDisk):
        # Given too soon, the same command says the same and harms nothing.
        with pytest.raises(OSError, match="Read-only file system"):
            search(disk.folder, total=8, objective=FastObjective(log=log))
    disk.get_well()
    trials = search(disk.folder, total=8, objective=FastObjective(log=log))
    assert told(trials) == told(uninterrupted)


@dataclass(frozen=True, kw_only=True)
class Writing(FastObjective):
    """A run that keeps a file of each epoch in its folder, and fails as a real one does when it cannot."""

    def __call__(self, spec, folder, on_epoch):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for epoch in range(1, EPOCHS + 1):
                (folder / f"{epoch}").write_bytes(bytes(100_000))
                if not on_epoch(make_report(spec, epoch)):
                    return make_result(spec, folder, Outcome.PRUNED, epochs=epoch)
        except OSError as error:
            text = f"{type(error).__name__}: {error}"
            return make_result(spec, folder, Outcome.FAILED, epochs=0, error=text)
        return make_result(spec, folder, Outcome.FINISHED, epochs=EPOCHS)


@pytest.mark.parametrize("disk", [Disk], indirect=True)
def test_runs_that_cannot_be_written_are_not_counted_as_failed(tmp_path, disk):
    writing = Writing(log=tmp_path / "log")
    study = open_study(disk.folder, pruner="none")
    driver = Driver(study, Limits(runs=8))
    driver.run_here(writing)
    states = [trial.state for trial in study.trials()]
    study.close()
    # 2 MB hold four runs, not eight.
    assert 3 <= states.count(TrialState.COMPLETE) < 8
    assert set(states) == {TrialState.COMPLETE, TrialState.RUNNING}
    assert "could not write" in driver.stopping
    assert "No space left on device" in driver.stopping
    assert disk.mount("-o", "remount,size=20m")
    trials = search(disk.folder, total=8, objective=writing, pruner="none")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 8
    assert told(trials) == told(search(tmp_path / "whole", total=8, pruner="none"))


@pytest.mark.ray
def test_runs_that_no_machine_had_room_for_are_not_counted_as_failed(tmp_path):
    from training.cluster import _no_room

    text = _no_room(2, {"GPU": 4}, wait_seconds=600.0, folder=tmp_path)

    def homeless(spec, folder, _on_epoch):
        return make_result(spec, folder, Outcome.FAILED, epochs=0, error=text)

    study = open_study(tmp_path, pruner="none")
    driver = Driver(study, Limits(runs=8))
    driver.run_here(homeless)
    assert [trial.state for trial in study.trials()] == [TrialState.RUNNING]
    assert "--wait sets the time" in driver.stopping
    study.close()
    trials = search(tmp_path, total=2, pruner="none")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
