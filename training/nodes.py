"""The machines of a Ray cluster: whether all of them reach the storage that a study or build lives on.

A folder of one machine's own disk goes unnoticed as long as a run happens to sit beside the driver, and then
costs the runs of every other machine; so every machine writes and reads before the first run starts.
"""

import fcntl
import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_SECONDS = 120.0


class StorageError(ValueError):
    """A folder that not every machine reaches; the message names the machine and the way out."""


@contextmanager
def former_sigterm() -> Iterator[None]:
    """Put the answer to SIGTERM back that Ray 2.60 replaces when it starts and when it ends."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def require_shared(folder: Path, readable: Sequence[Path] = (), *, seconds: float = _SECONDS) -> int:
    """Let every machine write a marker into a folder and read those of all others.

    Args:
        folder: where runs will be kept.
        readable: what every machine must see, such as recordings.
        seconds: after which a machine that does not answer is reported.

    Returns:
        The number of machines that did.

    Raises:
        StorageError: a machine cannot write there, does not see another's marker or what is to be read.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) <= 1:
        # Machines that join later look for the study before their first run.
        return len(nodes)
    probe = folder.resolve() / f".probe-{secrets.token_hex(8)}"
    probe.mkdir(parents=True)
    (probe / "driver").write_text(probe.name)
    lock = (probe / "lock").open("w")
    try:
        # As a driver locks its study, so that a second one is refused.
        fcntl.flock(lock, fcntl.LOCK_EX)
        written = _on_every_machine(nodes, write_marker, str(probe), seconds=seconds)
        problems = [problem for problem in written.values() if problem]
        if not problems:
            wanted = ["driver", *written]
            paths = [str(path.resolve()) for path in readable]
            seen = _on_every_machine(nodes, read_markers, str(probe), wanted, paths, seconds=seconds)
            problems = [problem for problem in seen.values() if problem]
            problems += _missing_here(probe, wanted)
    finally:
        lock.close()
        shutil.rmtree(probe, ignore_errors=True)
    if problems:
        raise StorageError(
            f"{folder} is not shared by all {len(nodes)} machines: {'; '.join(problems)}. Put it on storage "
            "that every machine mounts, and name that with --root or STRIATE_STORAGE"
        )
    return len(nodes)


def _on_every_machine(
    nodes: Sequence[dict[str, Any]], function: Any, probe: str, *arguments: Any, seconds: float
) -> dict[str, str]:
    """Call a function on every machine; returns its answers by machine, and what kept one from answering."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=1)(function)
    answers = {}
    for node in nodes:
        # Two machines may have the same name.
        marker = f"{node['NodeManagerHostname']}-{node['NodeID'][:8]}"
        strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        answers[marker] = task.options(scheduling_strategy=strategy).remote(probe, marker, *arguments)
    found = {}
    for marker, answer in answers.items():
        try:
            found[marker] = ray.get(answer, timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            found[marker] = f"{marker} did not answer within {seconds:.0f} s"
        except ray.exceptions.RayError as error:
            found[marker] = f"{marker} did not answer ({type(error).__name__})"
    return found


def write_marker(probe: str, marker: str) -> str:
    """Do on this machine what programs of ours do with files: write, flush, rename, append, lock.

    Returns:
        What went wrong, in words; nothing if all went well.
    """
    folder = Path(probe)
    if not (folder / "driver").is_file():
        return f"{marker} does not see what the driver's machine wrote there"
    try:
        partial = folder / f"{marker}.partial"
        with partial.open("w") as file:
            file.write(folder.name)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / marker)
        with (folder / marker).open("a") as file:
            file.write(marker)
        with (folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return f"{marker} does not see the driver's lock, so two drivers could write one study"
    except BlockingIOError:
        return ""
    except OSError as error:
        return f"{marker} cannot write or lock there ({error})"


def read_markers(probe: str, marker: str, wanted: Sequence[str], readable: Sequence[str]) -> str:
    """Look on this machine for the markers of all others, and for what must be readable."""
    missing = _missing_here(Path(probe), wanted)
    missing += [f"{path} does not exist" for path in readable if not Path(path).exists()]
    return f"on {marker}, {', '.join(missing)}" if missing else ""


def _missing_here(probe: Path, wanted: Sequence[str]) -> list[str]:
    problems = []
    for name in wanted:
        expected = probe.name if name == "driver" else probe.name + name
        try:
            if (probe / name).read_text() != expected:
                problems.append(f"the marker of {name} has another content")
        except OSError:
            problems.append(f"the marker of {name} is missing")
    return problems
