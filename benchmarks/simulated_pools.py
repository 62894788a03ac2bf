"""Simulated recordings, and predictions written as a build stores them, without waiting for the disk."""

import json
from collections.abc import Iterable

import numpy as np

from data.array_files import HEADER_BYTES, npy_header
from data.recording import Neurons, Recording, Stimulus, Tier, Trial
from training.prediction_info import PredictionInfo
from training.prediction_writer import FORMAT
from training.predictions import PredictionStore

SESSION, TIER = "mouse", "oracle"


class SimulatedRecording(Recording):
    """Responses ``[trial, frame, neuron]`` in one array; their official std is 1.

    Args:
        responses: of all trials, repeats of a video next to each other.
        num_repeats: of each video.
    """

    def __init__(self, responses: np.ndarray, num_repeats: int) -> None:
        self.session, self.fingerprint = SESSION, "simulated"
        self._values = responses
        num_trials, self._num_frames, num_neurons = responses.shape
        self.neurons = Neurons(ids=np.arange(num_neurons), coordinates_um=np.zeros((num_neurons, 3)))
        self.trials = tuple(
            Trial(
                index=index,
                tier=Tier.ORACLE,
                num_frames=self._num_frames,
                video_id=f"video-{index // num_repeats:02d}",
                stimulus=Stimulus.MOVIE,
                has_responses=True,
            )
            for index in range(num_trials)
        )

    def responses(self, trial: Trial) -> np.ndarray:
        """Return the responses of one trial."""
        return self._values[trial.index].T

    def statistics(self, variable: str, name: str) -> np.ndarray:
        """Return the official std."""
        assert (variable, name) == ("responses", "std")
        return np.ones((len(self.neurons.ids), self._num_frames), np.float32)


def write_member(
    store: PredictionStore, recording: SimulatedRecording, member: str, trials: Iterable[np.ndarray]
) -> None:
    """Write one member's predictions ``[neuron, frame]`` of all frames of each trial, in half precision."""
    num_neurons, num_trials = len(recording.neurons.ids), len(recording.trials)
    path = store.path(member, SESSION, TIER)
    path.parent.mkdir(parents=True)
    info = PredictionInfo(
        member=member,
        session=SESSION,
        tier=TIER,
        trials=tuple(trial.index for trial in recording.trials),
        frames=((0, recording.trials[0].num_frames),) * num_trials,
        num_neurons=num_neurons,
        neurons_sha256="simulated",
        fingerprint="simulated",
        checkpoint_sha256=member,
    )
    with path.open("wb") as file:
        header = npy_header(np.dtype("<f2"), info.shape)
        assert len(header) == HEADER_BYTES
        file.write(header)
        for values in trials:
            file.write(values.astype("<f2").tobytes())
    plain = info.to_plain() | {"format": FORMAT, "dtype": "float16", "sha256": member}
    path.with_suffix(".json").write_text(json.dumps(plain))
