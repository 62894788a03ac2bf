"""What a person watches: a live bar on a terminal, plain lines in a log."""

import io

from rich.console import Console

from training.console import RunDisplay
from training.results import EpochReport, StepReport


def step_report(step):
    return StepReport(epoch=1, step=step, num_steps=40, loss=1.2345, clips_per_second=67.8)


def epoch_report(epoch, *, seconds):
    return EpochReport(
        epoch=epoch,
        loss=1.1,
        score=0.123,
        score_by_session={"mouse": 0.123},
        best_score=0.15,
        rate=0.001,
        seconds=seconds,
        clips_per_second=67.8,
        peak_memory_bytes=10**9,
    )


def shown(*, terminal):
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120, soft_wrap=True)
    with RunDisplay(console, epochs=10) as display:
        for step in (1, 20):
            display.step(step_report(step))
        display._progress.refresh()
        display.epoch(epoch_report(1, seconds=60.0))
        display.epoch(epoch_report(2, seconds=30.0))
        display._progress.refresh()
    return written.getvalue()


def test_a_terminal_sees_steps_speed_and_loss_live():
    live = shown(terminal=True)
    assert "\x1b[" in live
    assert "20/40" in live
    assert "loss 1.2345  67.8 clips/s" in live
    assert "correlation 0.1230  best 0.1500" in live


def test_a_log_sees_one_plain_line_per_epoch_with_the_time_left():
    lines = shown(terminal=False).splitlines()
    assert [line[:11] for line in lines] == ["epoch   1/1", "epoch   2/1"]
    assert "loss 1.1000  correlation 0.1230  best 0.1500  67.8 clips/s" in lines[0]
    # A minute an epoch, nine to go; then 45 s on average, eight to go.
    assert lines[0].endswith("at most 9.0 min left")
    assert lines[1].endswith("at most 6.0 min left")
    assert "\x1b" not in "".join(lines)
