"""What an ensemble is made of. A recipe turns options into members; adding one is a function and a line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ensembles.members import Member
from ensembles.runs import find_run, member_of_run, runs_of_study
from training.names import nearest, with_values
from training.recipes import Scale, demo, dwiseneuro, recipe, v1fm_members
from training.spec import RunSpec

PAPER_SEEDS = (8, 16, 42, 64, 128, 512, 1024, 2048, 4096, 16384, 32768, 131072, 262144, 1048576)
"""Seeds of the ensemble baseline (Turishcheva et al. 2024, Table 6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """What a recipe may ask for.

    Attributes:
        arguments: words behind the recipe's name: a model, a study, runs.
        scale: published size, or a small one.
        settings: hyperparameters of all members that are trained, by dotted name.
        seeds: how many seeds, or ``paper`` for the ensemble baseline's.
        top: how many runs of a study.
        subset: this many members, spread over the recipe's list; None takes all.
        root: folder of runs, studies and builds.
    """

    arguments: tuple[str, ...] = ()
    scale: Scale = "full"
    settings: Mapping[str, str] = field(default_factory=dict)
    seeds: str = "5"
    top: int = 5
    subset: int | None = None
    root: Path = Path("runs")

    def sized(self, spec: RunSpec) -> RunSpec:
        """Return a published run at the wanted scale with the wanted settings."""
        return with_values(demo(spec) if self.scale == "demo" else spec, self.settings)

    def only(self, what: str) -> str:
        """Return the one word behind the recipe's name.

        Raises:
            ValueError: there is none, or more than one.
        """
        if len(self.arguments) != 1:
            given = " ".join(self.arguments) or "nothing"
            raise ValueError(f"behind the recipe stands {given}, but there must be one {what}")
        return self.arguments[0]

    def nothing(self) -> None:
        """Refuse words behind the recipe's name."""
        if self.arguments:
            raise ValueError(f"behind the recipe stands {' '.join(self.arguments)}, but must stand nothing")


Recipe = Callable[[RecipeOptions], list[Member]]


def v1fm31(options: RecipeOptions) -> list[Member]:
    """Return Dynamic-V1FM's ensemble: 15 mean-fusion members, 15 adaptive-fusion members, the plain readout.

    Source:
        Turishcheva et al. 2024, A.2; released code. All have seed 42.
    """
    options.nothing()
    return [Member(name=v1fm_name(spec), spec=options.sized(spec)) for spec in v1fm_members()]


def v1fm31_shared(options: RecipeOptions) -> list[Member]:
    """Return the 31 readouts of ``v1fm31`` on one core that is trained once; our cheaper variant.

    Not published. The heads are cut out of the trained encoder and are members like any others.
    """
    options.nothing()
    specs = [options.sized(spec) for spec in v1fm_members()]
    names = tuple(v1fm_name(spec) for spec in specs)
    first = specs[0]
    trunk = replace(first, model=replace(first.model, heads=names))  # type: ignore[type-var]
    heads = [Member(name=name, spec=spec, trunk="shared") for name, spec in zip(names, specs, strict=True)]
    return [Member(name="shared", spec=trunk, is_pooled=False), *heads]


def v1fm_name(spec: RunSpec) -> str:
    """Return the name of a V1FM member: its fusion and its levels."""
    levels, fusion = getattr(spec.model, "levels", ()), getattr(spec.model, "fusion", "mean")
    return f"{fusion}-{'-'.join(map(str, levels))}" if levels else "plain"


def seeds(options: RecipeOptions) -> list[Member]:
    """Return one model under several seeds; ``factorized`` with the paper's 14 is the ensemble baseline.

    Source:
        Turishcheva et al. 2024, Table 6 (14 seeds of the factorized baseline); section 6.3 (5 of ViViT).
    """
    family = options.only("model, for example: seeds factorized --seeds paper")
    spec = options.sized(recipe(family))
    numbers: tuple[int, ...] = PAPER_SEEDS
    if options.seeds != "paper":
        try:
            count = int(options.seeds)
        except ValueError:
            count = 0
        if count < 1:
            raise ValueError(f"--seeds is {options.seeds!r}, but must be a number from 1 on, or paper")
        numbers = tuple(range(spec.seed, spec.seed + count))
    return [Member(name=f"seed-{seed}", spec=replace(spec, seed=seed)) for seed in numbers]


def folds(options: RecipeOptions) -> list[Member]:
    """Return one model trained without each of its folds; of ``dwiseneuro`` also the distilled second stage.

    Source:
        DwiseNeuro's released code: 7 folds by two stages; each second-stage model learns from the first-stage
        model of its fold.
    """
    family = options.only("model, for example: folds dwiseneuro")
    first = [_without_fold(options.sized(recipe(family)), fold, stage=1) for fold in _folds(options, family)]
    if family != "dwiseneuro":
        return first
    second_spec = options.sized(dwiseneuro(stage=2))
    second = [_without_fold(second_spec, fold, stage=2) for fold in _folds(options, family)]
    taught = [replace(member, teacher=of.name) for member, of in zip(second, first, strict=True)]
    return [*first, *taught]


def _folds(options: RecipeOptions, family: str) -> range:
    return range(options.sized(recipe(family)).split.num_folds)


def _without_fold(spec: RunSpec, fold: int, *, stage: int) -> Member:
    split = replace(spec.split, fold=fold)
    return Member(name=f"stage-{stage}-fold-{fold}", spec=replace(spec, split=split))


def study(options: RecipeOptions) -> list[Member]:
    """Return the best runs of a search; nothing is trained again."""
    folder = options.root / "studies" / options.only("study, for example: study vivit-demo --top 5")
    if options.top < 1:
        raise ValueError(f"--top is {options.top}, but must be at least 1")
    return [member_of_run(run) for run in runs_of_study(folder, top=options.top)]


def members(options: RecipeOptions) -> list[Member]:
    """Return any runs, also of mixed models and studies: folders, names below the root, or MLflow runs."""
    if not options.arguments:
        raise ValueError("behind the recipe stands nothing, but there must be runs: members RUN RUN ...")
    return [member_of_run(find_run(run, root=options.root)) for run in options.arguments]


RECIPES: dict[str, Recipe] = {
    "v1fm31": v1fm31,
    "v1fm31-shared": v1fm31_shared,
    "seeds": seeds,
    "folds": folds,
    "study": study,
    "members": members,
}
"""Recipes by name."""


def make_members(name: str, options: RecipeOptions) -> list[Member]:
    """Return the members of a recipe.

    Raises:
        ValueError: there is no recipe of this name, or the options do not fit it.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe is {name!r}{nearest(name, RECIPES)}")
    chosen = RECIPES[name](options)
    names = [member.name for member in chosen]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"members are given twice: {', '.join(doubled)}; name each run once")
    return chosen if options.subset is None else spread(chosen, options.subset)


def spread(chosen: list[Member], count: int) -> list[Member]:
    """Return ``count`` pooled members, evenly spaced over the list, and those that they need.

    Raises:
        ValueError: there are fewer members.
    """
    pooled = [member for member in chosen if member.is_pooled]
    if not 1 <= count <= len(pooled):
        raise ValueError(f"--subset is {count}, but must be 1 to {len(pooled)}, the members of the recipe")
    kept = {int(index) for index in np.linspace(0, len(pooled) - 1, count).round()}
    names: set[str | None] = {pooled[index].name for index in kept}
    names |= {
        needed for member in chosen if member.name in names for needed in (member.teacher, member.trunk)
    }
    return [member for member in chosen if member.name in names]
