"""The pass over all predictions that leaves evidence, block of neurons by block; a stop costs one block."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.array_files import flush_folder, write_bytes
from data.recording import Recording, Tier
from ensembles.clips import MAX_CLIPS, Clip, SessionPlan, plan_sessions
from ensembles.evidence import FORMAT, Evidence, block_path
from ensembles.gathering import TILE, SessionReader, summarize_block
from ensembles.packed_moments import num_values
from training.predictions import PredictionStore

logger = logging.getLogger(__name__)


def gather(
    store: PredictionStore,
    members: Sequence[str],
    recordings: Sequence[Recording],
    *,
    tier: Tier | str,
    folder: Path,
    memory_bytes: int = 2**30,
    threads: int = 2,
    max_clips: int = MAX_CLIPS,
) -> Evidence:
    """Read all predictions once and keep what scores any weighted mean of them.

    Blocks of neurons are written one by one, each under its name only when it is whole; the same call
    continues after any interruption, and opens what is complete. Evidence of other predictions in the folder
    is replaced.

    Args:
        store: predictions of all members.
        members: their names, in the order of weights.
        recordings: sessions with responses.
        tier: under this name the predictions are stored.
        folder: for the evidence, ``num_values(K) * 16`` bytes for each neuron and clip.
        memory_bytes: what the pass may take, beside the interpreter.
        threads: blocks at a time.
        max_clips: more videos of a class in a session than this are grouped into so many clips.

    Raises:
        PredictionError: predictions are missing, damaged, not finite, or not comparable; both are named.
        ScoreError: a trial cannot be scored.
    """
    clips, plans = plan_sessions(store, members, recordings, tier=str(tier), max_clips=max_clips)
    identity = _identity(members, clips, plans, tier=str(tier))
    block = _block_size(folder, identity, _fitting_block(plans, memory_bytes=memory_bytes, threads=threads))
    if not (folder / "evidence.json").exists():
        num_masked = {plan.recording.session: _gather_session(plan, folder, block, threads) for plan in plans}
        content = {"format": FORMAT, "block": block, "identity": identity, "num_masked": num_masked}
        write_bytes(folder / "evidence.json", (json.dumps(content, indent=1) + "\n").encode())
    return Evidence.open(folder)


def _gather_session(plan: SessionPlan, folder: Path, block: int, threads: int) -> int:
    """Write the blocks of one session that are missing; return how many responses are NaN."""
    session = plan.recording.session
    (folder / session).mkdir(parents=True, exist_ok=True)
    wanted = [
        slice(start, min(start + block, plan.num_neurons)) for start in range(0, plan.num_neurons, block)
    ]
    missing = [neurons for neurons in wanted if not _masked_path(folder, session, neurons.start).exists()]
    logger.info(
        "%s: %d members, %d trials, %d of %d blocks to gather",
        session, len(plan.files), plan.num_trials, len(missing), len(wanted),
    )  # fmt: skip
    before = torch.get_num_threads()
    try:
        with (
            SessionReader(plan) as reader,
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            for _ in pool.map(lambda neurons: _gather_block(reader, neurons, folder), missing):
                pass
    finally:
        torch.set_num_threads(before)
    return sum(int(_masked_path(folder, session, neurons.start).read_text()) for neurons in wanted)


def _gather_block(reader: SessionReader, neurons: slice, folder: Path) -> None:
    session = reader.plan.recording.session
    packed, masked = summarize_block(reader, neurons)
    path = block_path(folder, session, neurons.start)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, packed)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    # The count is written last: a block without it is gathered again.
    write_bytes(_masked_path(folder, session, neurons.start), f"{masked}\n".encode())


def _identity(
    members: Sequence[str], clips: Sequence[Clip], plans: Sequence[SessionPlan], *, tier: str
) -> dict[str, Any]:
    return {
        "tier": tier,
        "members": list(members),
        "clips": [
            {"name": clip.name, "videos": list(clip.video_ids), "stimulus": str(clip.stimulus)}
            for clip in clips
        ],
        "sessions": {
            plan.recording.session: {
                "num_neurons": plan.num_neurons,
                "fingerprint": plan.recording.fingerprint,
                "clips": list(plan.clips),
                "trials": [
                    [scored.trial.index, scored.first, scored.stop]
                    for videos in plan.clips.values()
                    for repeats in videos
                    for scored in repeats
                ],
                "predictions": [file.sha256 for file in plan.files],
            }
            for plan in plans
        },
    }


def _block_size(folder: Path, identity: dict[str, Any], fitting: int) -> int:
    """Return the size of the blocks that are there; start again where they belong to something else."""
    path = folder / "plan.json"
    try:
        plain = json.loads(path.read_text())
        if plain["format"] == FORMAT and plain["identity"] == identity:
            return int(plain["block"])
        logger.info("%s holds evidence of other predictions and is replaced", folder)
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evidence.json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    flush_folder(folder)
    for old in (*folder.glob("*/block-*.npy"), *folder.glob("*/block-*.masked")):
        old.unlink()
    content = {"format": FORMAT, "block": fitting, "identity": identity}
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    return fitting


def _fitting_block(plans: Sequence[SessionPlan], *, memory_bytes: int, threads: int) -> int:
    """Return how many neurons fit at a time: packed moments, a copy of them, and responses of a clip."""
    most = 0
    for plan in plans:
        packed = 2 * len(plan.clips) * num_values(len(plan.files)) * 8
        responses = 4 * max(
            sum(scored.stop - scored.first for repeats in videos for scored in repeats)
            for videos in plan.clips.values()
        )
        most = max(most, 2 * packed + responses)
    fitting = memory_bytes // (4 * threads * most)
    return int(min(max(fitting // TILE, 1) * TILE, 1024))


def _masked_path(folder: Path, session: str, start: int) -> Path:
    return folder / session / f"block-{start:06d}.masked"
