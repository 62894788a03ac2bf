"""What a run works with: recordings, their split, normalizations, clips, and how many fit into memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from data.clips import ClipBatch
from data.folds import Trials, partner_test_movies, select_trials, split_trials
from data.loading import ClipLoader
from data.normalization import Normalization
from data.recording import Recording, Tier
from models.encoder import Encoder, SessionSpec
from training.augmentation import cutmix, draw_partners
from training.micro_batch import fitting_micro_batch
from training.ranks import Ranks
from training.spec import RunSpec
from training.step import seed_for

SelectOn = Literal["holdout", "oracle"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """Everything a run reads.

    Attributes:
        spec: the run.
        recordings: the sessions, in the order in which they take turns.
        training: trials that are trained on.
        choosing: trials that scores of epochs, early stopping and searches look at.
        normalizations: of each session, on the device.
        micro_batch: clips of a session that are computed at once.
        device: where the encoder is.
        seen_test_movies: videos of the training trials that score some mouse (also a partner mouse).
    """

    spec: RunSpec
    recordings: tuple[Recording, ...]
    training: Trials
    choosing: Trials
    normalizations: Mapping[str, Normalization]
    micro_batch: int
    device: torch.device
    seen_test_movies: frozenset[str]

    @classmethod
    def prepare(
        cls,
        recordings: Sequence[Recording],
        spec: RunSpec,
        *,
        device: torch.device,
        select_on: SelectOn = "holdout",
    ) -> "Material":
        """Split, fit normalizations, and check that the run has what it needs.

        Args:
            recordings: the sessions to train on.
            spec: the run.
            device: where normalization happens.
            select_on: ``holdout`` chooses by a fold of the training trials; ``oracle`` by the oracle tier,
                as the paper's systems did, which then no longer grades what was chosen.

        Raises:
            ValueError: no recordings, a tier without trials, or trials too short for a clip.
        """
        if not recordings:
            raise ValueError("recordings are empty, but a run needs at least one session")
        config = replace(spec.split, fold=None) if select_on == "oracle" else spec.split
        split = split_trials(recordings, config)
        choosing = split.held_out if select_on == "holdout" else select_trials(recordings, [Tier.ORACLE])
        _require_trials(choosing, select_on)
        return cls(
            spec=spec,
            recordings=tuple(recordings),
            training=split.train,
            choosing=choosing,
            normalizations={
                recording.session: Normalization.fit(recording, spec.normalization).to(device)
                for recording in recordings
            },
            micro_batch=fitting_micro_batch(
                spec,
                {recording.session: len(recording.neurons.ids) for recording in recordings},
                recordings[0].frame_shape,
                device=device,
            ),
            device=device,
            seen_test_movies=partner_test_movies(recordings, split.train),
        )

    @property
    def num_trials(self) -> dict[str, int]:
        """Trials of each session that the loss's scale counts."""
        if self.spec.loss.count == "training":
            return {session: len(trials) for session, trials in self.training.items()}
        return {recording.session: len(recording.trials) for recording in self.recordings}

    def session_specs(self) -> list[SessionSpec]:
        """Return what readouts may know of the recordings."""
        return [
            SessionSpec(
                session=recording.session,
                num_neurons=len(recording.neurons.ids),
                coordinates_um=torch.as_tensor(recording.neurons.coordinates_um, dtype=torch.float32),
                mean_response=self.normalizations[recording.session].mean_response.cpu(),
            )
            for recording in self.recordings
        ]

    def build_encoder(self) -> Encoder:
        """Build the run's encoder; its parameters are a function of the run's seed."""
        frame_shape = self.recordings[0].frame_shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.spec.seed))
            return self.spec.model.build(self.session_specs(), frame_shape).to(self.device)

    def loader(self, ranks: Ranks) -> ClipLoader:
        """Return the training clips of one process."""
        return ClipLoader(
            self.recordings,
            self.training,
            self.spec.loader,
            seed=self.spec.seed,
            rank=ranks.rank,
            num_ranks=ranks.world_size,
            pin_memory=self.device.type == "cuda",
        )

    def prepare_batches(self, clips: Sequence[ClipBatch], *, seed: tuple[int, ...]) -> list[ClipBatch]:
        """Bring clips to the device and into the model's units, and mix them.

        Args:
            clips: one process's part of a step.
            seed: numbers that the mixing is a function of.
        """
        rng = np.random.default_rng(seed)
        batches = []
        with torch.no_grad():
            for raw in clips:
                batch = self.normalizations[raw.session](raw.to(self.device))
                if self.spec.cutmix.probability > 0:
                    batch = cutmix(batch, draw_partners(batch, rng=rng), self.spec.cutmix, rng=rng)
                batches.append(batch)
        return batches


def _require_trials(choosing: Trials, select_on: SelectOn) -> None:
    empty = [session for session, trials in choosing.items() if not trials]
    if empty and select_on == "holdout":
        raise ValueError(
            f"split.fold leaves {', '.join(empty)} without hold-out trials to choose by: "
            "set a fold from 0 on, fewer split.num_folds, or select on the oracle tier"
        )
    if empty:
        raise ValueError(f"{', '.join(empty)} has no oracle trials with responses, but selection needs some")
