"""Whether a run can exist on this device, decided before a worker starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.recording import Recording
from models.cost import Cost, estimate_cost
from models.encoder import SessionSpec
from training.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasibility:
    """Checks runs against the recordings and the memory of a device.

    Attributes:
        neurons: of each session.
        frame_shape: rows and columns of the videos.
        memory_bytes: that one run may use; None does not check.
    """

    neurons: tuple[tuple[str, int], ...]
    frame_shape: tuple[int, int]
    memory_bytes: int | None = None

    @classmethod
    def of(cls, recordings: Sequence[Recording], *, memory_bytes: int | None) -> "Feasibility":
        """Return the check for runs on some recordings."""
        return cls(
            neurons=tuple((recording.session, len(recording.neurons.ids)) for recording in recordings),
            frame_shape=recordings[0].frame_shape,
            memory_bytes=memory_bytes,
        )

    def __call__(self, spec: RunSpec) -> str | None:
        """Return why a run cannot be made, or None."""
        try:
            self.build(spec)
            if self.memory_bytes is None or self._is_small(spec):
                return None
            needed = self.cost(spec, clips=1).peak_bytes
        except (ValueError, RuntimeError) as error:
            return str(error).splitlines()[0]
        if needed <= self.memory_bytes:
            return None
        return (
            f"one clip at a time needs {needed / 1e9:.1f} GB, "
            f"but a run may use {self.memory_bytes / 1e9:.1f} GB"
        )

    def _is_small(self, spec: RunSpec) -> bool:
        # The prediction takes a second; no model takes this many times the memory of a clip's video.
        video_bytes = 4 * spec.loader.clip_frames * math.prod(self.frame_shape)
        return self.memory_bytes is not None and 10_000 * video_bytes < self.memory_bytes

    def build(self, spec: RunSpec) -> None:
        """Build the encoder without storage.

        Raises:
            ValueError: its shapes cannot work on these frames.
        """
        with torch.device("meta"):
            sessions = [
                SessionSpec(
                    session=session,
                    num_neurons=num_neurons,
                    coordinates_um=torch.empty(num_neurons, 3),
                    mean_response=torch.empty(num_neurons),
                )
                for session, num_neurons in self.neurons
            ]
            spec.model.build(sessions, self.frame_shape)

    def cost(self, spec: RunSpec, *, clips: int) -> Cost:
        """Return what a training step of some clips costs."""
        shape = (clips, spec.loader.clip_frames, *self.frame_shape)
        return estimate_cost(spec.model, dict(self.neurons), shape, training=True)


def available_bytes(*, gpus_per_run: float, slots: int) -> int | None:
    """Return how much memory each of several runs at a time may use: 80 % of what is free, shared."""
    if gpus_per_run > 0:
        if not torch.cuda.is_available():
            # The driver's machine has no GPU; what those of the workers hold shows when runs start.
            return None
        total = int(torch.cuda.get_device_properties(0).total_memory)
        return int(0.9 * total * min(1.0, gpus_per_run))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return int(0.8 * free * 1024 / slots)
