"""What ``ensembles/build.py`` does once its command line is read."""

import argparse
import fcntl
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.command_line import FAILED, INTERRUPTED, MISUSED
from data.given import given_recordings
from data.recording import Recording
from data.sources import open_recordings
from ensembles.assessment import Assessment, assess
from ensembles.builder import Progress, make_members, missing_members
from ensembles.cluster import ClusterConfig, make_on_ray
from ensembles.display import BuildDisplay
from ensembles.distillation import distill
from ensembles.identity import BuildError
from ensembles.manifest import MANIFEST_FILE, ManifestError
from ensembles.members import Member, MemberResult
from ensembles.mirror import EXPERIMENT, BuildMirror
from ensembles.plan import BuildPlan, make_plan, plan_cluster
from ensembles.report_tables import print_report
from ensembles.soup import make_soup
from ensembles.stability import stability_table
from ensembles.submission import Submission, require_withheld, submit
from ensembles.verification import verify
from models.cost import estimate_cost
from training.results import EpochReport
from training.tracking import default_tracking_uri, prepare_store

CHAMPION = "champion"
_LOG_WIDTH = 160


def build_command(parsed: argparse.Namespace) -> int:
    """Build as the parsed arguments say; return the exit code."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    console = Console()
    if not console.is_terminal:
        # In a log file the tables have no window to fit into.
        console = Console(width=_LOG_WIDTH)
    if parsed.verify is not None:
        return _verify(parsed, console)
    try:
        plan = make_plan(parsed)
        submission = Submission(tracks=tuple(parsed.submit), frames=parsed.frames)
        cluster = plan_cluster(parsed, scale=plan.scale, num_members=len(plan.members))
        recordings, source = given_recordings(parsed.recordings, parsed.root)
        plan.check(recordings)
        require_withheld(recordings, submission)
    except (ValueError, OSError) as error:
        _print_error(console, error)
        return MISUSED
    _print_header(console, plan, recordings, source=source, cluster=cluster)
    if parsed.dry_run:
        console.print(_plan_table(plan, recordings))
        return 0
    try:
        with _held(plan.folder):
            plan.claim(recordings)
            return _build(parsed, plan, recordings, cluster=cluster, console=console)
    except KeyboardInterrupt:
        console.print("interrupted; finished epochs and predictions are kept. The same command goes on.")
        return INTERRUPTED
    except (BuildError, ManifestError) as error:
        _print_error(console, error)
        return FAILED


def _build(
    parsed: argparse.Namespace,
    plan: BuildPlan,
    recordings: Sequence[Recording],
    *,
    cluster: ClusterConfig,
    console: Console,
) -> int:
    mirror = None if parsed.no_tracking else _mirror(plan, recordings, root=parsed.root)
    finished = False
    try:
        with BuildDisplay(console, num_members=len(plan.members)) as display:
            results, assessment = _make(plan, recordings, cluster, display=display, mirror=mirror)
        finished = True
    finally:
        if mirror is not None and not mirror.close(finished=finished):
            console.print(
                f"not everything reached MLflow; it is kept in {plan.folder}. To send it later: "
                f"python training/train.py --sync-tracking --runs {parsed.root}",
                highlight=False,
            )
    print_report(assessment.analysis, console)
    if plan.recipe.startswith("seeds"):
        console.print(stability_table(assessment.analysis))
    if parsed.distill is not None:
        _distill(plan, recordings, ratio=parsed.distill, console=console)
    if parsed.soup:
        _soup(plan, recordings, console=console)
    if parsed.submit:
        submission = Submission(tracks=tuple(parsed.submit), frames=parsed.frames)
        for path in submit(plan.folder, recordings, submission):
            console.print(f"submission  {path}", highlight=False, markup=False, soft_wrap=True)
    if mirror is not None:
        _publish(plan, recordings, root=parsed.root, run_id=mirror.run_id, console=console)
    failed = [result for result in results if not result.is_usable]
    for result in failed:
        console.print(f"failed: {result.name}: {result.error}", highlight=False, markup=False)
    for what, path in (("report", assessment.report), ("manifest", plan.folder / MANIFEST_FILE)):
        console.print(f"{what:<10}  {path}", highlight=False, markup=False, soft_wrap=True)
    return FAILED if failed else 0


def _make(
    plan: BuildPlan,
    recordings: Sequence[Recording],
    cluster: ClusterConfig,
    *,
    display: BuildDisplay,
    mirror: BuildMirror | None,
) -> tuple[list[MemberResult], Assessment]:
    watching: list[BuildDisplay | BuildMirror] = [display, *([] if mirror is None else [mirror])]

    def started(members: Sequence[Member]) -> None:
        for each in watching:
            each.started(members)

    def epoch(name: str, report: EpochReport) -> None:
        for each in watching:
            each.epoch(name, report)

    def ended(result: MemberResult) -> None:
        for each in watching:
            each.ended(result)

    progress = Progress(started=started, epoch=epoch, ended=ended, phase=display.phase)
    executor = partial(make_on_ray, config=cluster)
    threads = max(int(cluster.cpus_per_member), 1)
    results = make_members(plan, recordings, executor, progress=progress, threads=threads)
    assessment = assess(plan, recordings, results, progress=progress, threads=max(threads, 2))
    if mirror is not None:
        mirror.assessed(assessment)
    return results, assessment


def _distill(plan: BuildPlan, recordings: Sequence[Recording], *, ratio: float, console: Console) -> None:
    def show(report: EpochReport) -> None:
        console.print(f"student     epoch {report.epoch:>3}  hold-out {report.score:.4f}", highlight=False)

    found = distill(plan.folder, recordings, ratio=ratio, on_epoch=show)
    console.print(
        f"distilled   {found.score:.4f} (ensemble {found.teacher:.4f}, best single member "
        f"{found.best_single:.4f}); {found.unseen_share:.0%} of its trials were new to its teachers",
        highlight=False,
    )


def _soup(plan: BuildPlan, recordings: Sequence[Recording], *, console: Console) -> None:
    found = make_soup(plan.folder, recordings)
    verdict = "accepted" if found.is_accepted else "not accepted"
    console.print(
        f"soup        {verdict}: {found.score:.4f}, best member {max(found.scores.values()):.4f} on "
        f"{found.judged_on}",
        highlight=False,
    )


def _publish(
    plan: BuildPlan, recordings: Sequence[Recording], *, root: Path, run_id: str, console: Console
) -> None:
    # MLflow's import takes seconds that a build without tracking does not need.
    from ensembles.serving import publish

    uri = default_tracking_uri(root)
    try:
        published = publish(plan.folder, recordings, uri=uri, run_id=run_id, experiment=EXPERIMENT)
    except Exception as error:
        # The build is whole; a registry that does not answer must not make it fail.
        console.print(f"not registered: {error}. The same command tries again.", style="yellow", markup=False)
        return
    role = f"is {CHAMPION}" if published.is_champion else f"is not {CHAMPION}"
    console.print(
        f"model       {published.name} version {published.version} {role}: {published.words}. Serve it: "
        f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/{published.name}/{published.version} "
        "--env-manager local",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _mirror(plan: BuildPlan, recordings: Sequence[Recording], *, root: Path) -> BuildMirror:
    uri = default_tracking_uri(root)
    if uri.startswith("sqlite"):
        prepare_store(uri, experiment=EXPERIMENT)
    return BuildMirror(plan, recordings, uri=uri)


def _verify(parsed: argparse.Namespace, console: Console) -> int:
    try:
        recordings = (
            open_recordings(parsed.recordings, cache=parsed.root / "cache") if parsed.recordings else []
        )
        findings = verify(parsed.verify, recordings)
    except (ValueError, OSError) as error:
        _print_error(console, error)
        return MISUSED
    table = Table(title=f"Check of {parsed.verify}", title_justify="left")
    for column in ("check", "holds", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, "yes" if finding.holds else "NO", finding.words)
    console.print(table)
    if not recordings:
        console.print(
            "--recordings DIR also checks the data and scores the predictions again", highlight=False
        )
    return 0 if all(finding.holds for finding in findings) else FAILED


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep a second command out of the build's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BuildError(f"{folder} is being built by another process; wait for it or end it") from None
        yield


def _print_error(console: Console, error: Exception) -> None:
    console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def _print_header(
    console: Console,
    plan: BuildPlan,
    recordings: Sequence[Recording],
    *,
    source: str,
    cluster: ClusterConfig,
) -> None:
    neurons = sum(len(recording.neurons.ids) for recording in recordings)
    unit, count = (
        ("GPU", cluster.gpus_per_member) if cluster.gpus_per_member > 0 else ("core", cluster.cpus_per_member)
    )
    holdout = {session: len(trials) for session, trials in plan.holdout(recordings).items()}
    chosen = (
        f"chosen on {sum(holdout.values())} hold-out trials"
        if all(holdout.values())
        else "members share no hold-out: chosen by leaving one oracle clip out at a time"
    )
    lines = (
        f"recipe      {plan.recipe}, {len(plan.members)} members, {plan.scale} scale; "
        f"{len(missing_members(plan))} to be trained",
        f"recordings  {len(recordings)} mice, {neurons} neurons; {source}",
        f"members     {'as many' if cluster.slots is None else cluster.slots} at a time"
        f"{' as the cluster has room for' if cluster.slots is None else ''}, on {count:g} {unit} each",
        f"weights     {chosen}, scored on oracle",
        f"build       {plan.folder}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _plan_table(plan: BuildPlan, recordings: Sequence[Recording]) -> Table:
    table = Table(title="Members", title_justify="left")
    for column in ("member", "model", "seed", "fold", "epochs", "parameters", "GFLOP", "from"):
        is_text = column in ("member", "model", "from")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column == "member")
    neurons = {recording.session: len(recording.neurons.ids) for recording in recordings}
    rows, columns = recordings[0].frame_shape
    for member in plan.members:
        spec = member.spec
        clip = (1, spec.loader.clip_frames, rows, columns)
        cost = estimate_cost(spec.model, neurons, clip, training=False)
        table.add_row(
            member.name,
            spec.family,
            str(spec.seed),
            str(spec.split.fold),
            str(spec.epochs),
            f"{cost.parameters:,}",
            f"{cost.flops / 1e9:.2f}",
            member.teacher or member.trunk or ("training" if member.source is None else str(member.source)),
        )
    return table
