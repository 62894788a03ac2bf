"""The training loop. What drives it (a command, a search, a cluster) is known to it as two callbacks."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.clips import ClipBatch
from models.encoder import Encoder
from training.averaging import MovingAverage
from training.device import configured, peak_memory_bytes
from training.encoders import load_encoder, pack_encoder
from training.material import Material
from training.micro_batch import Rewind, is_out_of_memory, warn_of_batch_norm
from training.optimization import clip_gradients, make_optimizer, set_rate
from training.predict import score_trials
from training.ranks import Ranks, copy_from_first, from_first, sum_gradients, sum_over_ranks
from training.results import EpochReport, StepReport
from training.run_folder import RunFolder
from training.scores import Score
from training.spec import RunSpec
from training.step import GradientConfig, LossSum, NonFiniteLossError, accumulate_gradients

logger = logging.getLogger(__name__)

EXPLODED = 1e6
"""A loss per neuron and frame above this is no training any more."""

OnEpoch = Callable[[EpochReport], bool]
OnStep = Callable[[StepReport], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What training leaves.

    Attributes:
        reports: one for each epoch, also those before a resume.
        score: hold-out score of the parameters that the encoder holds now.
        score_by_session: the same for each session.
        stopped: True when ``on_epoch`` ended the run early.
    """

    reports: tuple[EpochReport, ...]
    score: float
    score_by_session: Mapping[str, float]
    stopped: bool


@dataclass(slots=True, kw_only=True)
class _Progress:
    reports: list[EpochReport] = field(default_factory=list)
    steps: int = 0
    kept_epoch: int = 0

    @property
    def best_score(self) -> float:
        return max((report.score for report in self.reports), default=-math.inf)


def fit(
    encoder: Encoder,
    material: Material,
    spec: RunSpec,
    *,
    on_epoch: OnEpoch,
    on_step: OnStep | None = None,
    folder: RunFolder | None = None,
    ranks: Ranks | None = None,
) -> FitResult:
    """Train until ``spec.epochs``, until the schedule ends, or until ``on_epoch`` answers False.

    Args:
        encoder: on its device; holds the kept parameters (best or last, by the schedule) afterwards.
        material: recordings, split, normalizations and clips.
        spec: what to do.
        on_epoch: called in every process after each epoch; the first one's answer decides for all of them.
        on_step: called in the first process after each optimizer step.
        folder: where to keep states; a run whose folder has one goes on from there, exactly.
        ranks: this process among those of the run.

    Raises:
        NonFiniteLossError: the loss is no longer a number, or has exploded.
        CheckpointError: the folder's states are damaged or of another run.
        OSError: a state could not be written; those before it are intact.
        RuntimeError: a single clip does not fit into memory (see ``micro_batch.is_out_of_memory``).
    """
    trainer = _Trainer(encoder, material, spec, folder=folder, ranks=ranks or Ranks())
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with configured(spec.compute), torch.random.fork_rng(devices=devices):
        return trainer.run(on_epoch, on_step)


class _Trainer:
    def __init__(
        self,
        encoder: Encoder,
        material: Material,
        spec: RunSpec,
        *,
        folder: RunFolder | None,
        ranks: Ranks,
    ) -> None:
        self.encoder, self.material, self.spec = encoder, material, spec
        self.folder, self.ranks = folder, ranks
        self.device = next(encoder.parameters()).device
        self.optimizer = make_optimizer(encoder, spec.optimizer)
        self.loader = material.loader(ranks)
        self.schedule = spec.schedule.build(epochs=spec.epochs, steps_per_epoch=self.loader.num_steps)
        decay = spec.optimizer.ema_decay
        self.average = None if decay is None else MovingAverage(encoder, decay=decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=spec.compute.precision == "fp16")
        teacher = spec.distillation.teacher
        self.teacher = None if teacher is None else load_encoder(Path(teacher), device=self.device).encoder
        self.progress = _Progress()
        self.kept: dict[str, Tensor] = {}
        self.written_epoch = 0
        self.micro_batch = min(material.micro_batch, spec.loader.batch_size)
        self.inference = spec.inference
        self.by_session = [list(encoder.session_parameters(name)) for name in encoder.sessions]
        of_this_process = -(-spec.loader.batch_size // ranks.world_size)
        warn_of_batch_norm(
            encoder, at_once=min(self.micro_batch, of_this_process), batch_size=spec.loader.batch_size
        )
        if spec.compute.compile:
            # Sessions differ in neurons only, so the core compiles once for all of them.
            encoder.core.compile()

    def run(self, on_epoch: OnEpoch, on_step: OnStep | None) -> FitResult:
        ended = self._resume()
        copy_from_first([*self.encoder.parameters(), *self.encoder.buffers()], ranks=self.ranks)
        stopped = False
        while not ended and len(self.progress.reports) < self.spec.epochs:
            ended, stopped = self._epoch(on_epoch, on_step)
        return self._finish(stopped=stopped)

    def _epoch(self, on_epoch: OnEpoch, on_step: OnStep | None) -> tuple[bool, bool]:
        epoch = len(self.progress.reports)
        started = time.monotonic()
        loss, training_seconds = self._train(epoch, on_step)
        score, by_session = self._score()
        decision = self.schedule.end_epoch(score)
        self.progress.reports.append(
            EpochReport(
                epoch=epoch + 1,
                loss=loss.mean,
                score=score,
                score_by_session=by_session,
                best_score=max(self.progress.best_score, score),
                rate=self.optimizer.param_groups[0]["lr"],
                seconds=time.monotonic() - started,
                clips_per_second=loss.clips / max(training_seconds, 1e-9),
                peak_memory_bytes=peak_memory_bytes(self.device),
            )
        )
        last = decision.stop or epoch + 1 == self.spec.epochs
        self._keep(decision.improved, last=last)
        if decision.restore_best:
            self.encoder.load_state_dict(self.kept)
        self._save(ended=last)
        go_on = on_epoch(self.progress.reports[-1])
        go_on = bool(from_first(go_on, ranks=self.ranks))
        return last or not go_on, not go_on

    def _train(self, epoch: int, on_step: OnStep | None) -> tuple[LossSum, float]:
        self.encoder.train()
        started, total = time.monotonic(), LossSum()
        for step, clips in enumerate(self.loader.epoch(epoch)):
            set_rate(self.optimizer, self.schedule.rate_factor(self.progress.steps, epoch))
            seed = (self.spec.seed, epoch, step, self.ranks.rank)
            total.add(self._over_ranks(self._gradients(clips, seed)))
            self._require_sane(total, epoch, step)
            self._apply_gradients()
            self.progress.steps += 1
            if on_step is not None and self.ranks.is_first:
                on_step(
                    StepReport(
                        epoch=epoch + 1,
                        step=step + 1,
                        num_steps=self.loader.num_steps,
                        loss=total.mean,
                        clips_per_second=total.clips / max(time.monotonic() - started, 1e-9),
                    )
                )
        return total, time.monotonic() - started

    def _gradients(self, clips: Sequence[ClipBatch], seed: tuple[int, ...]) -> LossSum:
        rewind = Rewind(self.encoder)
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                batches = self.material.prepare_batches(clips, seed=seed)
                return accumulate_gradients(self.encoder, batches, self._gradient_config(), seed=seed)
            except (MemoryError, RuntimeError) as error:
                if self.micro_batch == 1 or not is_out_of_memory(error):
                    raise
            # Outside of the handler, where nothing holds on to the step's tensors any more.
            batches = []
            self.micro_batch = max(self.micro_batch // 2, 1)
            self._free_memory(f"{self.micro_batch} clips at a time")
            rewind.undo()

    def _free_memory(self, remedy: str) -> None:
        logger.warning("out of memory: going on with %s", remedy)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gradient_config(self) -> GradientConfig:
        return GradientConfig(
            loss=self.spec.loss,
            compute=self.spec.compute,
            num_trials=self.material.num_trials,
            micro_batch=self.micro_batch,
            joint=self.spec.loader.order == "mixed",
            ranks=self.ranks,
            scale_up=self.scaler.scale,
            teacher=self.teacher,
            teacher_ratio=self.spec.distillation.ratio,
        )

    def _apply_gradients(self) -> None:
        sum_gradients(self.encoder.core_parameters(), self.by_session, ranks=self.ranks)
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.encoder, self.spec.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()

    def _over_ranks(self, loss: LossSum) -> LossSum:
        if self.ranks.world_size == 1:
            return loss
        packed = torch.tensor([loss.total, loss.count, loss.clips], dtype=torch.float64, device=self.device)
        total, count, clips = sum_over_ranks(packed, ranks=self.ranks).tolist()
        return LossSum(total=total, count=int(count), clips=int(clips))

    def _require_sane(self, loss: LossSum, epoch: int, step: int) -> None:
        if not loss.mean < EXPLODED:
            raise NonFiniteLossError(
                f"loss per neuron and frame is {loss.mean:.3g} at step {step + 1} of epoch {epoch + 1}, "
                f"but must stay below {EXPLODED:.0e}: try a lower optimizer.core_lr"
            )

    def _score(self) -> tuple[float, dict[str, float]]:
        # Batch statistics were gathered by each process from its own clips; the first one's count.
        copy_from_first(self.encoder.buffers(), ranks=self.ranks)
        self.encoder.eval()
        with self._averaged():
            copy_from_first(self.encoder.buffers(), ranks=self.ranks)
            score = self._score_encoder()
        by_session = {name: value.single_trial for name, value in score.by_session.items()}
        return score.single_trial, by_session

    def _score_encoder(self) -> Score:
        while True:
            try:
                return score_trials(
                    self.encoder,
                    self.material.recordings,
                    self.material.choosing,
                    normalizations=self.material.normalizations,
                    inference=self.inference,
                    compute=self.spec.compute,
                    ranks=self.ranks,
                    while_training=True,
                )
            except (MemoryError, RuntimeError) as error:
                if self.inference.batch_windows == 1 or not is_out_of_memory(error):
                    raise
            fewer = self.inference.batch_windows // 2
            self.inference = replace(self.inference, batch_windows=fewer)
            self._free_memory(f"{fewer} windows at a time when scoring")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        with nullcontext() if self.average is None else self.average.applied():
            yield

    def _keep(self, improved: bool, *, last: bool) -> None:
        wanted = improved if self.spec.schedule.keep == "best" else last
        if not wanted:
            return
        with self._averaged():
            self.kept = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}
        self.progress.kept_epoch = len(self.progress.reports)

    def _save(self, *, ended: bool) -> None:
        failure: str | None = None
        if self.folder is not None and self.ranks.is_first:
            try:
                self._write(self.folder, ended=ended)
            except OSError as error:
                failure = f"{self.folder.path} cannot be written: {error}"
        # All processes end together, not the first one alone while the others wait for it.
        failure = from_first(failure, ranks=self.ranks)
        if failure is not None:
            raise OSError(failure)

    def _write(self, folder: RunFolder, *, ended: bool) -> None:
        self._write_kept(folder)
        folder.save_state(
            self._state(ended=ended),
            epoch=len(self.progress.reports),
            score=self.progress.reports[-1].score,
        )

    def _write_kept(self, folder: RunFolder) -> None:
        epoch = self.progress.kept_epoch
        if epoch == self.written_epoch:
            return
        packed = pack_encoder(
            self.kept, self.material.session_specs(), self.material.recordings[0].frame_shape
        )
        folder.save_kept(packed, epoch=epoch, score=self.progress.reports[epoch - 1].score)
        self.written_epoch = epoch

    def _state(self, *, ended: bool) -> dict[str, Any]:
        return {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
            "reports": [asdict(report) for report in self.progress.reports],
            "steps": self.progress.steps,
            "kept_epoch": self.progress.kept_epoch,
            "ended": ended,
        }

    def _resume(self) -> bool:
        """Go on from the folder's newest state; True when that run had ended."""
        loaded = None if self.folder is None else self.folder.load_state(device=self.device)
        if self.folder is None or loaded is None:
            return False
        state, self.kept = loaded
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress.reports = [EpochReport(**report) for report in state["reports"]]
        self.progress.steps = state["steps"]
        self.progress.kept_epoch = state["kept_epoch"]
        self.written_epoch = self.progress.kept_epoch
        return bool(state["ended"])

    def _finish(self, *, stopped: bool) -> FitResult:
        if not self.kept:
            self._keep(True, last=True)
            if self.folder is not None and self.ranks.is_first:
                self._write_kept(self.folder)
        self.encoder.load_state_dict(self.kept)
        self.encoder.eval()
        kept = self.progress.reports[self.progress.kept_epoch - 1]
        return FitResult(
            reports=tuple(self.progress.reports),
            score=kept.score,
            score_by_session=kept.score_by_session,
            stopped=stopped,
        )
