"""How near to the best possible score the demo recipes come: table of families, scores, shares, CPU seconds.

    python benchmarks/learning.py                                  # all recipes, about ten minutes
    python benchmarks/learning.py --only factorized vivit --seeds 1 2 3
    python docs/pictures/learning.py                               # draws what the last call left

Recordings are simulated, so the best possible score is known: it is that of the true rates, which know the
video as the moving eye saw it, running and pupil, but no noise (``training/known_ceiling.py``). Runs learn
from the train tier and are chosen on its hold-out fold; the score is that of the oracle tier, which chose
nothing. Finished runs in the folder are not trained again.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

# This folder is first on the path of a script, and its files would be found in place of our packages.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.experiment import SimulationConfig  # noqa: E402
from data.folds import Trials, select_trials  # noqa: E402
from data.recording import Recording, Tier, Trial  # noqa: E402
from data.simulation import simulate  # noqa: E402
from data.sources import open_recordings  # noqa: E402
from training.encoders import load_encoder  # noqa: E402
from training.known_ceiling import known_ceiling, open_truths  # noqa: E402
from training.material import Material  # noqa: E402
from training.names import with_values  # noqa: E402
from training.predict import score_trials  # noqa: E402
from training.recipes import demo, dwiseneuro, recipe  # noqa: E402
from training.run import run  # noqa: E402
from training.spec import RunSpec  # noqa: E402

TEACHER = "dwiseneuro"
STUDENT = "dwiseneuro, stage 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One trained recipe.

    Attributes:
        name: of the recipe.
        seed: of the run.
        score: single-trial correlation on the oracle tier.
        to_average: correlation to average on the oracle tier.
        ceiling: single-trial correlation of the true rates there.
        epochs: trained.
        cpu_seconds: of training with its hold-out scores, all threads.
        parameters: of the core.
        checkpoint: folder of the kept encoder.
    """

    name: str
    seed: int
    score: float
    to_average: float
    ceiling: float
    epochs: int
    cpu_seconds: float
    parameters: int
    checkpoint: str


def main() -> None:
    """Simulate, train what is asked for, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(specs()), default=list(specs()), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--to", type=Path, default=Path("runs/learning"), help="recordings, runs, outcomes")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    raw = args.to / "recordings"
    recordings = open_recordings(simulate(raw, SimulationConfig.for_scale("demo")), cache=args.to / "cache")
    oracle = select_trials(recordings, [Tier.ORACLE])
    ceiling = known_ceiling(recordings, open_truths(raw, recordings), oracle).single_trial
    outcomes = []
    for seed in args.seeds:
        for name in args.only:
            outcome = learn(name, seed, recordings, oracle, ceiling=ceiling, to=args.to)
            outcomes.append(outcome)
            print(f"{name}, seed {seed}: {outcome.score:.3f} in {outcome.cpu_seconds:.0f} CPU s", flush=True)
    Console(width=120).print(table(outcomes, args.only, behavior=behavior_alone(recordings, oracle)))


def specs() -> dict[str, RunSpec]:
    """Return the demo recipes by name."""
    families = {family: recipe(family, scale="demo") for family in ("factorized", "gru", "vivit", "v1fm")}
    adaptive = with_values(families["v1fm"], {"model.fusion": "adaptive"})
    return {
        **families,
        "v1fm, adaptive": adaptive,
        TEACHER: recipe(TEACHER, scale="demo"),
        STUDENT: demo(dwiseneuro(stage=2)),
    }


def learn(
    name: str, seed: int, recordings: Sequence[Recording], oracle: Trials, *, ceiling: float, to: Path
) -> Outcome:
    """Train one recipe, or take it from its folder, and score it."""
    folder = to / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    done = folder / "learning.json"
    if done.is_file():
        return Outcome(**json.loads(done.read_text()))
    spec = replace(specs()[name], seed=seed)
    if name == STUDENT:
        teacher = learn(TEACHER, seed, recordings, oracle, ceiling=ceiling, to=to)
        spec = with_values(spec, {"distillation.teacher": teacher.checkpoint})
    started = time.process_time()
    result = run(spec, recordings, folder)
    cpu_seconds = time.process_time() - started
    if result.checkpoint is None:
        raise SystemExit(f"{name} failed: {result.error}")
    material = Material.prepare(recordings, spec, device=torch.device("cpu"))
    encoder = load_encoder(result.checkpoint).encoder
    score = score_trials(
        encoder,
        recordings,
        oracle,
        normalizations=material.normalizations,
        inference=spec.inference,
        compute=spec.compute,
    )
    outcome = Outcome(
        name=name,
        seed=seed,
        score=score.single_trial,
        to_average=score.to_average,
        ceiling=ceiling,
        epochs=result.epochs,
        cpu_seconds=cpu_seconds,
        parameters=sum(parameter.numel() for parameter in encoder.core_parameters()),
        checkpoint=str(result.checkpoint),
    )
    done.write_text(json.dumps(asdict(outcome)))
    return outcome


def behavior_alone(recordings: Sequence[Recording], oracle: Trials) -> float:
    """Return how well running speed alone correlates with the oracle tier: a trivial predictor."""
    correlations = []
    for recording in recordings:
        trials = oracle[recording.session]
        speed = np.concatenate([recording.behavior(trial)[1, 50:] for trial in trials])
        responses = np.concatenate([_responses(recording, trial)[:, 50:] for trial in trials], axis=1)
        correlations.append(np.corrcoef(speed, responses)[0, 1:])
    return float(np.concatenate(correlations).mean())


def _responses(recording: Recording, trial: Trial) -> np.ndarray:
    responses = recording.responses(trial)
    assert responses is not None
    return np.asarray(responses, np.float64)


def table(outcomes: Sequence[Outcome], names: Sequence[str], *, behavior: float) -> Table:
    """Return scores, shares of the ceiling and costs; means over seeds, ranges where there are several."""
    ceiling = outcomes[0].ceiling
    result = Table(title=f"oracle tier; true rates {ceiling:.3f}, running speed alone {behavior:.3f}")
    for column in ("recipe", "single trial", "share of ceiling", "to average", "epochs", "CPU s", "core"):
        result.add_column(column, justify="left" if column == "recipe" else "right")
    for name in names:
        mine = [outcome for outcome in outcomes if outcome.name == name]
        result.add_row(
            name,
            spread([outcome.score for outcome in mine], "{:.3f}"),
            spread([100 * outcome.score / ceiling for outcome in mine], "{:.0f} %"),
            spread([outcome.to_average for outcome in mine], "{:.3f}"),
            spread([outcome.epochs for outcome in mine], "{:.0f}"),
            spread([outcome.cpu_seconds for outcome in mine], "{:.0f}"),
            f"{mine[0].parameters:,}",
        )
    return result


def spread(values: Sequence[float], form: str) -> str:
    """Return the mean, and the range of several values."""
    mean = form.format(float(np.mean(values)))
    if len(values) == 1 or min(values) == max(values):
        return mean
    return f"{mean} ({form.format(min(values))}-{form.format(max(values))})"


if __name__ == "__main__":
    main()
