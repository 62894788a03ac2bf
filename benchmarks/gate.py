"""Does the gate open when it should? Simulated pools of members whose truth is known.

    python benchmarks/gate.py                                  # 20 replicates of each pool, 6 CPU s each
    python benchmarks/gate.py --replicates 4 --pool broken31   # a quick look

Weights are chosen on six clips (two repeats each), as the oracle tier has them, and judged on 40 fresh ones.
Responses are a signal of rank 40 and noise; a member predicts the signal with an error that all members
share, one that an architecture shares, and its own of rank 8. All errors run through all neurons and are
autocorrelated in time, so a clip holds few independent errors, whatever the number of neurons. The sizes give
what the published pools show: members correlate at 0.82, the mean of 31 scores 1.10 times a single one, 0.25.
"""

import argparse
import logging
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# This folder is first on the path of a script, and its other scripts would be found in place of packages.
sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.simulated_pools import TIER, SimulatedRecording, write_member  # noqa: E402
from ensembles.blending import Blender  # noqa: E402
from ensembles.evidence import Evidence  # noqa: E402
from ensembles.evidence_pass import gather  # noqa: E402
from ensembles.gate import choose  # noqa: E402
from ensembles.intervals import jackknife, leave_one_out_sets  # noqa: E402
from ensembles.packed_moments import weigh  # noqa: E402
from training.predictions import PredictionStore  # noqa: E402

NUM_FRAMES, NUM_CLIPS, NUM_REPEATS, NUM_TEST_CLIPS = 300, 6, 2, 40
SIGNAL_RANK, SHARED_RANK, OWN_RANK = 40, 20, 8
AUTOCORRELATION = 0.9
SHARED_VARIANCE, OWN_VARIANCE, NOISE_VARIANCE = 0.6, 0.351, 7.2


@dataclass(frozen=True)
class Kind:
    """One kind of member.

    Attributes:
        group: architecture.
        gain: of the signal and the shared error.
        own: variance of the member's own error, relative to that of the published pools.
        common: variance of an error that the architecture shares.
        scale: of all predictions.
        spread: standard deviation of the logarithm of ``own`` between members.
    """

    group: str = "all"
    gain: float = 1.0
    own: float = 1.0
    common: float = 0.0
    scale: float = 1.0
    spread: float = 0.0


POOLS: dict[str, list[Kind]] = {
    "equal31": [Kind()] * 31,
    "seeds14": [Kind(spread=0.5)] * 14,
    # Six that failed for one reason, and six that failed each for its own.
    "broken31": [Kind()] * 25 + [Kind(group="broken", gain=0.4, common=2.0, own=2.0)] * 6,
    "apart31": [Kind()] * 25 + [Kind(group="broken", gain=0.5, own=6.0)] * 6,
    "mixed31": [
        *[Kind(group="a", common=0.5, own=1.5)] * 14,
        *[Kind(group="b", common=0.3, gain=1.1, scale=0.6)] * 9,
        *[Kind(group="c", common=0.2, gain=1.25, scale=0.5)] * 5,
        *[Kind(group="d", common=1.0, gain=0.9, scale=1.5)] * 3,
    ],
}


def main() -> None:
    """Simulate, choose, judge, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--pool", action="append", choices=sorted(POOLS), help="default: all")
    parser.add_argument("--neurons", type=int, default=300)
    parser.add_argument("--to", type=Path, help="where temporary folders are made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # What is dropped is counted; it need not be told each time.
    logging.disable(logging.WARNING)
    console = Console(width=130)
    for name in args.pool or POOLS:
        results = []
        for replicate in range(args.replicates):
            with tempfile.TemporaryDirectory(prefix="gate-", dir=args.to) as folder:
                results.append(judge(Path(folder), POOLS[name], name, replicate, args.neurons))
        show(console, name, results)


def show(console: Console, name: str, results: list[dict[str, float]]) -> None:
    """Print the table of one pool."""
    mean = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
    table = Table(title=f"{name}: {len(results)} replicates", title_justify="left")
    for column in ("method", "gain on fresh clips, % of the mean of all", "sd over replicates", "worst"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for key in results[0]:
        if key.startswith("gain "):
            values = np.array([result[key] for result in results])
            cells = (f"{values.mean():+.2f}", f"{values.std(ddof=1):.2f}", f"{values.min():+.2f}")
            table.add_row(key.removeprefix("gain "), *cells)
    console.print(table)
    console.print(
        f"gate open in {mean['open']:.0%}; members dropped as broken {mean['dropped']:.1f}; "
        f"score of the mean of all {mean['score']:.4f}, "
        f"{mean['over single']:.3f} times the average member; correlation of members "
        f"{mean['correlation']:.2f}; 95 % intervals hold the score of the mean in {mean['covers score']:.0%} "
        f"and the gain of the simplex in {mean['covers gain']:.0%}\n"
    )


def judge(folder: Path, kinds: list[Kind], name: str, replicate: int, num_neurons: int) -> dict[str, float]:
    """Choose weights on a few clips and score them on fresh ones."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), replicate])
    simulate = simulator(rng, kinds, num_neurons)
    seen = simulate(folder / "seen", NUM_CLIPS, NUM_REPEATS)
    fresh = simulate(folder / "fresh", NUM_TEST_CLIPS, 1)
    groups = {member: kind.group for member, kind in zip(seen.members, kinds, strict=True)}
    everyone = np.full(len(kinds), 1 / len(kinds))
    base = fresh.score(everyone).pooled
    one_hot = np.eye(len(kinds))
    choice = choose(seen, groups=groups)
    assert choice.gate is not None
    result = {
        "gain gated (the default)": percent(fresh.score(choice.weights).pooled, base),
        "gain best single member": percent(fresh.score(one_hot[choice.single_scores.argmax()]).pooled, base),
        "gain mean of members that are not broken": percent(
            fresh.score(np.isin(seen.members, choice.kept).astype(float)).pooled, base
        ),
    }
    pool = seen.only(choice.kept)
    places = [seen.members.index(member) for member in choice.kept]
    for blend in ("zscored", "greedy", "bagged", "simplex", "groups", "exhaustive"):
        blender = Blender(blend, pool, groups=[groups[member] for member in choice.kept])
        blended = blender.fit(range(NUM_CLIPS))
        weights = np.zeros(len(kinds))
        weights[places] = next(iter(blended.weights.values()))
        scales = None
        if blended.scales is not None:
            scales = {session: np.ones((len(kinds), num_neurons), np.float32) for session in seen.sessions}
            for session, factors in blended.scales.items():
                scales[session][places] = factors
        result[f"gain {blend}, forced"] = percent(fresh.score(weights, scales=scales).pooled, base)
    known = Blender("simplex", fresh).fit(range(NUM_TEST_CLIPS))
    result["gain best there is (fitted on the fresh clips)"] = percent(
        fresh.score(known.weights).pooled, base
    )
    sets = leave_one_out_sets(NUM_CLIPS)
    interval = jackknife(seen.score_sets([everyone], sets).pooled[:, 0])
    kept = np.isin(seen.members, choice.kept).astype(float)
    gain = (result["gain simplex, forced"] / 100 + 1) * base - fresh.score(kept).pooled
    singles = fresh.score_sets(list(one_hot), np.ones((1, NUM_TEST_CLIPS), np.int64)).pooled[0]
    return result | {
        "open": float(choice.gate.is_open),
        "dropped": float(len(choice.broken)),
        "score": base,
        "over single": base / float(np.mean(singles)),
        "correlation": correlation(fresh),
        "covers score": float(interval.low <= base <= interval.high),
        # Weights that are uniform in spite of it all gain nothing, but for rounding.
        "covers gain": float(choice.gate.gain.low - 1e-6 <= gain <= choice.gate.gain.high + 1e-6),
    }


def percent(score: float, base: float) -> float:
    """Return a gain in percent."""
    return 100 * (score / base - 1)


def correlation(evidence: Evidence) -> float:
    """Return the mean correlation of two members' predictions, from variances of them and of their mean."""
    num_members = len(evidence.members)
    # Members of unequal scales are brought to one, neuron by neuron.
    std = evidence.standard_deviations(evidence.sessions[0])
    total = np.zeros(std.shape[1])
    for neurons, moments in evidence.blocks(evidence.sessions[0], "single_trial"):
        weights = np.ones((len(moments), 1, num_members))
        weighted = weigh(moments, weights, scales=1 / std[:, neurons])
        count = weighted.count.sum(axis=0)
        mean = (weighted.count[:, None] * weighted.mean).sum(axis=0) / count
        between = (weighted.count[:, None] * (weighted.mean - mean) ** 2).sum(axis=0)
        total[neurons] = ((weighted.scatter.sum(axis=0) + between) / count)[0]
    return float((total.mean() - num_members) / (num_members * (num_members - 1)))


def simulator(
    rng: np.random.Generator, kinds: list[Kind], num_neurons: int
) -> Callable[[Path, int, int], Evidence]:
    """Draw the neurons and members of one replicate; return what makes clips of them."""

    def loadings(rank: int) -> np.ndarray:
        return rng.normal(size=(num_neurons, rank)).astype(np.float32) / np.float32(np.sqrt(rank))

    def traces(rank: int) -> np.ndarray:
        values = np.empty((rank, NUM_FRAMES), np.float32)
        values[:, 0] = rng.normal(size=rank)
        steps = np.sqrt(1 - AUTOCORRELATION**2) * rng.normal(size=(rank, NUM_FRAMES))
        for frame in range(1, NUM_FRAMES):
            values[:, frame] = AUTOCORRELATION * values[:, frame - 1] + steps[:, frame]
        return values

    signal_of, shared_of = loadings(SIGNAL_RANK), loadings(SHARED_RANK)
    group_of = {kind.group: loadings(OWN_RANK) for kind in kinds}
    own_of = [loadings(OWN_RANK) for _ in kinds]
    own_size = [np.sqrt(OWN_VARIANCE * kind.own * np.exp(kind.spread * rng.normal())) for kind in kinds]

    def make(folder: Path, num_clips: int, num_repeats: int) -> Evidence:
        folder.mkdir()
        signals = [signal_of @ traces(SIGNAL_RANK) for _ in range(num_clips)]
        errors = [np.sqrt(SHARED_VARIANCE) * shared_of @ traces(SHARED_RANK) for _ in range(num_clips)]
        of_groups = [{name: of @ traces(OWN_RANK) for name, of in group_of.items()} for _ in signals]
        responses = np.stack(
            [
                (signal + np.sqrt(NOISE_VARIANCE) * rng.normal(size=signal.shape)).T.astype(np.float32)
                for signal in signals
                for _ in range(num_repeats)
            ]
        )
        recording = SimulatedRecording(responses, num_repeats)
        # All members' traces at once: drawing them one by one would take longer than everything else.
        own = [traces(OWN_RANK * len(kinds)).reshape(len(kinds), OWN_RANK, -1) for _ in signals]
        store = PredictionStore(root=folder / "predictions")
        for place, kind in enumerate(kinds):
            predicted = []
            for clip in range(num_clips):
                value = kind.gain * (signals[clip] + errors[clip])
                value = value + np.sqrt(kind.common) * of_groups[clip][kind.group]
                value = value + own_size[place] * own_of[place] @ own[clip][place]
                predicted += [kind.scale * value] * num_repeats
            write_member(store, recording, f"member-{place:02d}", predicted)
        members = [f"member-{place:02d}" for place in range(len(kinds))]
        return gather(
            store, members, [recording], tier=TIER, folder=folder / "evidence", threads=1, max_clips=num_clips
        )

    return make


if __name__ == "__main__":
    main()
