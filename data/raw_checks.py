"""What must hold in a raw recording; every check lists problems instead of stopping at the first."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from data.raw_files import NpyHeader, RawFiles, read_header, read_npy
from data.raw_format import ARRAYS, FRAME_RATE_HZ, SESSION_PATTERN, STATISTICS
from data.raw_trials import compress
from data.recording import Neurons, RecordingError, Tier

_TIERS = "meta/trials/tiers.npy"
_EXPERIMENT = ("animal_id", "session", "scan_idx")


@dataclass(slots=True, kw_only=True)
class Layout:
    """What the names, sizes and headers of a recording's files say, before any trial is read.

    Attributes:
        tiers: one per trial; None where the name is not a tier's.
        headers: of every readable trial file, by its name.
        array_shapes: the shape most files of each kind have.
        problems: everything that is wrong so far.
    """

    neurons: Neurons | None = None
    tiers: list[Tier | None] = field(default_factory=list)
    frame_rate_hz: float = float(FRAME_RATE_HZ)
    headers: dict[str, NpyHeader] = field(default_factory=dict)
    array_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check_layout(files: RawFiles) -> Layout:
    """Check everything that can be checked without reading a trial: seconds for a mouse of 17 GB."""
    layout = Layout(problems=list(files.problems))
    _check_tiers(files, layout)
    _check_neurons(files, layout)
    _check_experiment(files, layout)
    _check_trial_files(files, layout)
    _check_shapes(layout)
    _check_statistics(files, layout)
    return layout


def refuse(files: RawFiles, problems: Sequence[str]) -> RecordingError:
    """Make the one error that lists all problems of a recording."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return RecordingError(f"{files.session}: {count} in {files.path}{listed}")


def _read(files: RawFiles, layout: Layout, name: str) -> np.ndarray | None:
    try:
        return read_npy(files, name)
    except RecordingError as error:
        layout.problems.append(str(error))
        return None


def _check_tiers(files: RawFiles, layout: Layout) -> None:
    names = _read(files, layout, _TIERS)
    if names is None:
        return
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) == 0:
        layout.problems.append(
            f"{_TIERS} is {names.dtype} {names.shape}, but must be a list of strings, one per trial"
        )
        return
    known = [tier.value for tier in Tier]
    layout.tiers = [Tier(name) if name in known else None for name in names.tolist()]
    for name in sorted(set(names.tolist()) - set(known)):
        trials = compress(np.flatnonzero(names == name).tolist())
        near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        layout.problems.append(
            f"{_TIERS} has tier {name!r} for trials {trials}, but must have one of {', '.join(known)}; "
            f"the nearest is {near!r}"
        )


def _check_neurons(files: RawFiles, layout: Layout) -> None:
    ids = _read(files, layout, "meta/neurons/unit_ids.npy")
    coordinates = _read(files, layout, "meta/neurons/cell_motor_coordinates.npy")
    before = len(layout.problems)
    if ids is not None:
        layout.problems += _id_problems(ids)
    if coordinates is not None and (
        coordinates.ndim != 2
        or coordinates.shape[1] != 3
        or coordinates.dtype.kind not in "iuf"
        or not np.isfinite(coordinates).all()
    ):
        layout.problems.append(
            f"meta/neurons/cell_motor_coordinates.npy is {coordinates.dtype} {coordinates.shape}, "
            "but must be finite numbers, x, y and depth of each neuron"
        )
    if ids is None or coordinates is None or len(layout.problems) > before:
        return
    if len(ids) != len(coordinates):
        layout.problems.append(
            f"meta/neurons has {len(ids)} unit_ids and {len(coordinates)} cell_motor_coordinates, "
            "but must have one of each per neuron"
        )
        return
    layout.neurons = Neurons(ids=ids.astype(np.int64), coordinates_um=coordinates.astype(np.float64))


def _id_problems(ids: np.ndarray) -> list[str]:
    name = "meta/neurons/unit_ids.npy"
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) == 0:
        return [f"{name} is {ids.dtype} {ids.shape}, but must be a list of whole numbers, one per neuron"]
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        return [
            f"{name} has ids {compress(values[counts > 1].tolist())} more than once, but must have each once"
        ]
    return []


def _check_experiment(files: RawFiles, layout: Layout) -> None:
    """Check what only the new mice have: the experiment's own numbers, one session per folder."""
    match = SESSION_PATTERN.fullmatch(files.session)
    in_name = dict(zip(_EXPERIMENT, match.groups(), strict=True)) if match else {}
    for key in (*_EXPERIMENT, "target_fps", "trial_idx"):
        name = f"meta/trials/{key}.npy"
        if name not in files.sizes:
            continue
        values = _read(files, layout, name)
        if values is None or key == "trial_idx":
            continue
        found = sorted({str(value) for value in np.ravel(values).tolist()})
        if len(found) != 1:
            layout.problems.append(
                f"{name} has {', '.join(found) or 'nothing'}, but must have one value: "
                "a folder holds one session"
            )
        elif key in in_name and found[0] != in_name[key]:
            layout.problems.append(
                f"{name} has {found[0]}, but must have {in_name[key]} as the folder's name has"
            )
        elif key == "target_fps":
            layout.frame_rate_hz = float(found[0])


def _check_trial_files(files: RawFiles, layout: Layout) -> None:
    expected = {f"{index}.npy" for index in range(len(layout.tiers))}
    for array in ARRAYS:
        prefix = f"data/{array}/"
        found = {name.removeprefix(prefix) for name in files.sizes if name.startswith(prefix)}
        if layout.tiers:
            layout.problems += _membership_problems(prefix, found, expected)
        for name in sorted(found, key=_natural):
            if re.fullmatch(r"\d+\.npy", name) is None:
                continue
            try:
                layout.headers[prefix + name] = read_header(files, prefix + name)
            except RecordingError as error:
                layout.problems.append(str(error))


def _membership_problems(prefix: str, found: set[str], expected: set[str]) -> list[str]:
    problems = []
    missing = [int(name.removesuffix(".npy")) for name in expected - found]
    if missing:
        problems.append(
            f"{prefix} has no file for trials {compress(missing)}, "
            f"but must have 0.npy to {len(expected) - 1}.npy, one per entry of {_TIERS}"
        )
    extra = sorted(found - expected, key=_natural)
    if extra:
        problems.append(
            f"{prefix} has extra files {', '.join(extra)}, "
            f"but must have only 0.npy to {len(expected) - 1}.npy, one per entry of {_TIERS}"
        )
    return problems


def _natural(name: str) -> tuple[int, str]:
    digits = re.match(r"\d+", name)
    return (int(digits[0]) if digits else -1, name)


def _check_shapes(layout: Layout) -> None:
    num_frames = _most_common(header.shape[-1] for header in layout.headers.values() if header.shape)
    video = _most_common(
        header.shape[:2]
        for name, header in layout.headers.items()
        if name.startswith("data/videos/") and len(header.shape) == 3
    )
    num_neurons = _most_common(
        header.shape[0]
        for name, header in layout.headers.items()
        if name.startswith("data/responses/") and len(header.shape) == 2
    )
    if layout.neurons is not None:
        num_neurons = len(layout.neurons.ids)
    if num_frames is None or video is None or num_neurons is None:
        return
    leading = {"videos": video, "responses": (num_neurons,), "behavior": (2,), "pupil_center": (2,)}
    layout.array_shapes = {array: (*shape, num_frames) for array, shape in leading.items()}
    for name in list(layout.headers):
        problem = _shape_problem(name, layout.headers[name], layout.array_shapes[name.split("/")[1]])
        if problem is not None:
            layout.problems.append(problem)
            del layout.headers[name]


def _shape_problem(name: str, header: NpyHeader, expected: tuple[int, ...]) -> str | None:
    if header.dtype.kind != "f":
        return f"{name} is {header.dtype}, but must be floating point (float32 or float64)"
    if header.shape == expected:
        return None
    axes = "height, width, frames" if len(expected) == 3 else "rows, frames"
    return (
        f"{name} has shape {header.shape}, but must have {expected} ({axes}) like the rest of the recording"
    )


def _most_common(values: Iterable[Any]) -> Any:
    """Return the most frequent value (of equals the smallest), None if there is none."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value)) if counts else None


def _check_statistics(files: RawFiles, layout: Layout) -> None:
    for array, shape in layout.array_shapes.items():
        for statistic in STATISTICS:
            name = f"meta/statistics/{array}/all/{statistic}.npy"
            if name not in files.sizes:
                continue
            try:
                header = read_header(files, name)
            except RecordingError as error:
                layout.problems.append(str(error))
                continue
            problem = _shape_problem(name, header, shape)
            if problem is not None:
                layout.problems.append(problem)
