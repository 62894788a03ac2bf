"""Ensembles of seconds on the two tiny mice, also as a program that can be killed."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from training_runs import tiny_spec

from data.recording import open_store
from ensembles.assessment import assess
from ensembles.builder import Progress, make_members
from ensembles.making import make_here
from ensembles.members import Member
from ensembles.plan import BuildPlan

NUM_EPOCHS = 2


def tiny_members(count=3, *, family="factorized", epochs=NUM_EPOCHS):
    spec = tiny_spec(family, epochs=epochs)
    return tuple(Member(name=f"seed-{seed}", spec=replace(spec, seed=seed)) for seed in range(1, count + 1))


def tiny_plan(folder, members=None, **changes):
    return BuildPlan(
        folder=folder,
        recipe="seeds factorized",
        scale="demo",
        members=tiny_members() if members is None else tuple(members),
        **changes,
    )


def build(plan, recordings, *, progress=None, executor=make_here):
    """Make everything up to the manifest."""
    progress = progress or Progress()
    plan.check(recordings)
    plan.claim(recordings)
    results = make_members(plan, recordings, executor, progress=progress)
    return assess(plan, recordings, results, progress=progress)


def main(store: str, folder: str) -> None:
    """Build in a process of its own, one line for each event: something to kill."""
    torch.set_num_threads(1)

    def say(*words) -> None:
        print(*words, flush=True)

    progress = Progress(
        epoch=lambda name, report: say("epoch", name, report.epoch),
        ended=lambda result: say("ended", result.name),
        phase=lambda words: say("phase", words),
    )
    build(tiny_plan(Path(folder)), open_store(Path(store)), progress=progress)
    say("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
