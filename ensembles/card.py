"""The card of a registered ensemble: what a reader of MLflow's registry must know before using it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ensembles.manifest import EnsembleManifest

ABOUT = (
    "Ensembles that predict the responses of neurons in mouse visual cortex from video, running and pupil. "
    "Every version is one build; the alias `champion` is the best of those scored on the same data."
)
_METRICS = {"single_trial": "single-trial correlation", "to_average": "correlation to average"}
_CHOSEN = {
    "holdout": "trials of the train tier that no member was trained on",
    "oracle": "clips of the oracle tier, one left out at a time",
}


def model_card(manifest: EnsembleManifest) -> str:
    """Describe a build in Markdown: members, scores with intervals, what chose, data, how to ask it."""
    first, end = manifest.frames
    sections = (
        f"**{manifest.name}** - recipe `{manifest.recipe}`, {manifest.scale} scale, "
        f"{len(manifest.used)} of {len(manifest.members)} members, blend `{manifest.blend}`"
        f"{' (forced)' if manifest.forced else ''}",
        _scores(manifest),
        f"Scored on the {manifest.reported_on} tier, frames {first} to {end - 1}; weights were chosen on "
        f"{_CHOSEN.get(manifest.chosen_on, manifest.chosen_on)}.{_seen(manifest)}",
        _members(manifest),
        _data(manifest),
        "Ask it: rows of `mouse` (a session below), `video`, `behavior`, `pupil` (bytes of `.npy` files); "
        "it answers `first_frame` and `predicted` (neurons x frames, as bytes), in units "
        f"`{manifest.units}`. It knows these mice and their neurons only.",
        f"Made with {', '.join(f'{name} {value}' for name, value in sorted(manifest.versions.items()))}.",
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _scores(manifest: EnsembleManifest) -> str:
    share = manifest.scores.get("ceiling") or {}
    rows = ["| score | value | share of the noise ceiling |", "|---|---|---|"]
    for metric, words in _METRICS.items():
        of_ceiling = share.get(f"share_{metric}")
        rows.append(
            f"| {words} | {manifest.direct[metric]:.4f} | "
            f"{'not known' if of_ceiling is None else f'{of_ceiling:.0%}'} |"
        )
    return "\n".join(rows)


def _seen(manifest: EnsembleManifest) -> str:
    count = manifest.seen_test_movies
    return f" **Members were trained on {count} videos that score some mouse.**" if count else ""


def _members(manifest: EnsembleManifest) -> str:
    names = ("member", "model", "seed", "fold", "weight", "alone", "lost without it")
    rows = [_row(names), _row(["---"] * len(names))]
    rows += [
        _row(
            (
                member.name,
                member.architecture,
                str(member.seed),
                str(member.fold),
                f"{member.weight:.3f}",
                _value(member.score),
                _value(member.contribution),
            )
        )
        for member in sorted(manifest.members, key=lambda each: -each.weight)
    ]
    return "\n".join(rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _data(manifest: EnsembleManifest) -> str:
    rows = ["| session | neurons | data |", "|---|---|---|"]
    rows += [
        f"| {session} | {entry.num_neurons} | `{entry.fingerprint[:12]}` |"
        for session, entry in manifest.data.items()
    ]
    return "\n".join(rows)


def _value(by_metric: Mapping[str, Any] | None) -> str:
    return "-" if by_metric is None else f"{by_metric['single_trial']['value']:.4f}"
