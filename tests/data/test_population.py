import math
from dataclasses import replace

import numpy as np
import pytest

from data.calcium import (
    AMPLITUDE_SHAPE,
    LEAD_FRAMES,
    averaging_matrix,
    draw_trace,
    expected_trace,
    interpolation_matrix,
    sample_times,
    trace_variance,
)
from data.population import (
    Cells,
    Population,
    draw_cells,
    draw_coordinates,
    draw_unit_ids,
    gabor_filters,
)
from data.temporal import TemporalFilter
from data.tuning import Presentation, expected_signal_power, modulation_gain, tune, tuning_at

FRAME = (36, 64)


def make_cells(num_cells: int, *, seed: int = 0) -> Cells:
    generator = np.random.default_rng(seed)
    return draw_cells(
        draw_coordinates(num_cells, generator),
        frame_shape=FRAME,
        complex_share=0.5,
        events_per_second=0.6,
        generator=generator,
    )


def one_cell(*, is_complex: bool, directionality: float) -> Cells:
    return replace(
        make_cells(1),
        center_px=np.array([[18.0, 32.0]]),
        sigma_px=np.array([4.0]),
        cycles_per_px=np.array([0.11]),
        direction=np.array([0.0]),
        directionality=np.array([directionality]),
        is_complex=np.array([is_complex]),
    )


def drifting_grating(*, direction: float, cycles_per_px: float = 0.11, num_frames: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[: FRAME[0], : FRAME[1]]
    along = rows * np.sin(direction) + columns * np.cos(direction)
    time = np.arange(num_frames)[:, None, None]
    return 80 + 57 * np.sin(2 * np.pi * (cycles_per_px * along - 0.06 * time))


def test_gabor_filters_agree_with_a_loop_over_pixels():
    cells = make_cells(3)
    filters = gabor_filters(cells, frame_shape=FRAME).reshape(2, 3, *FRAME)
    for cell in range(3):
        envelope, even = np.empty(FRAME), np.empty(FRAME)
        for y in range(FRAME[0]):
            for x in range(FRAME[1]):
                dy, dx = y - cells.center_px[cell, 0], x - cells.center_px[cell, 1]
                envelope[y, x] = np.exp(-(dy**2 + dx**2) / (2 * cells.sigma_px[cell] ** 2))
                along = dy * np.sin(cells.direction[cell]) + dx * np.cos(cells.direction[cell])
                even[y, x] = envelope[y, x] * np.cos(2 * np.pi * cells.cycles_per_px[cell] * along)
        even -= envelope * even.sum() / envelope.sum()
        np.testing.assert_allclose(filters[0, cell], even / np.sqrt((even**2).sum()), atol=1e-6)


def test_uniform_light_drives_no_cell():
    population = Population(make_cells(20), frame_shape=FRAME)
    assert population.drive(np.full((30, *FRAME), 200.0)).max() < 1e-3


def test_temporal_matrices_convolve_causally():
    signal = np.random.default_rng(0).normal(size=40)
    temporal = TemporalFilter(tap_rate=1.3, rebound=0.4)
    for matrix, kernel in zip(temporal.matrices(40), temporal.kernels(), strict=True):
        np.testing.assert_allclose(signal @ matrix, np.convolve(signal, kernel)[:40], atol=1e-5)


def test_temporal_kernels_agree_with_the_formula_and_have_unit_energy():
    for order, kernel in zip((3, 5), TemporalFilter(tap_rate=0.7, rebound=0.5).kernels(), strict=True):
        expected = []
        for frame in range(15):
            time = 0.7 * frame
            lobes = 1 / math.factorial(order) - 0.5 * time**2 / math.factorial(order + 2)
            expected.append(time**order * math.exp(-time) * lobes)
        np.testing.assert_allclose(kernel, expected / np.sqrt(np.sum(np.square(expected))), atol=1e-12)


def test_without_a_rebound_cells_answer_to_what_stays_and_with_it_to_what_changes():
    still = np.repeat(drifting_grating(direction=0.0)[:1], 60, axis=0)
    cell = one_cell(is_complex=True, directionality=0.5)
    staying, changing = (
        Population(cell, frame_shape=FRAME, temporal=TemporalFilter(tap_rate=2.0, rebound=rebound)).drive(
            still
        )
        for rebound in (0.0, 1.0)
    )
    assert staying[0, -1] > 0.9 * staying[0].max()
    assert changing[0, -1] < 0.1 * changing[0].max()


def test_a_higher_tap_rate_answers_sooner():
    fast, slow = (TemporalFilter(tap_rate=rate, rebound=0.0).kernels().argmax(axis=1) for rate in (2.0, 0.9))
    assert (fast < slow).all()


@pytest.mark.parametrize("is_complex", [False, True])
def test_a_direction_selective_cell_prefers_its_direction_and_orientation(is_complex):
    selective = Population(one_cell(is_complex=is_complex, directionality=1.0), frame_shape=FRAME)
    preferred, opposite, across = (
        selective.drive(drifting_grating(direction=angle))[:, 30:].mean() for angle in (0.0, np.pi, np.pi / 2)
    )
    assert preferred > 1.3 * opposite
    assert preferred > 5 * across
    indifferent = Population(one_cell(is_complex=is_complex, directionality=0.0), frame_shape=FRAME)
    forth, back = (
        indifferent.drive(drifting_grating(direction=angle))[:, 30:].mean() for angle in (0.0, np.pi)
    )
    assert forth == pytest.approx(back, rel=0.1)


def test_a_complex_cell_responds_steadily_to_a_grating_and_a_simple_cell_in_its_rhythm():
    grating = drifting_grating(direction=0.0, num_frames=100)
    steady, rhythmic = (
        Population(one_cell(is_complex=kind, directionality=1.0), frame_shape=FRAME).drive(grating)[0, 50:]
        for kind in (True, False)
    )
    assert steady.std() < 0.1 * steady.mean()
    assert rhythmic.std() > rhythmic.mean()


def test_normalization_makes_doubling_the_contrast_less_than_double_the_drive():
    population = Population(make_cells(50), frame_shape=FRAME)
    weak = 80 + 0.5 * (drifting_grating(direction=0.0) - 80)
    ratio = population.drive(drifting_grating(direction=0.0)).mean() / population.drive(weak).mean()
    assert 1 < ratio < 1.7


def test_neighbors_in_cortex_see_neighboring_places_inside_the_frame():
    generator = np.random.default_rng(0)
    coordinates = draw_coordinates(2000, generator)
    cells = draw_cells(
        coordinates, frame_shape=FRAME, complex_share=0.5, events_per_second=0.6, generator=generator
    )
    assert np.corrcoef(coordinates[:, 0], cells.center_px[:, 1])[0, 1] > 0.8
    assert np.corrcoef(coordinates[:, 1], cells.center_px[:, 0])[0, 1] > 0.8
    assert cells.center_px.min() >= 5
    assert (cells.center_px.max(axis=0) <= np.array(FRAME) - 6).all()


def test_coordinates_and_ids_look_like_those_of_a_recording():
    generator = np.random.default_rng(0)
    coordinates = draw_coordinates(3000, generator)
    assert set(coordinates[:, 2]) == set(range(200, 426, 25))
    assert (np.ptp(coordinates[:, :2], axis=0) <= 615).all()
    np.testing.assert_array_equal(coordinates, np.round(coordinates))
    ids = draw_unit_ids(3000, generator)
    assert (np.diff(ids) > 0).all()
    assert 1.05 < ids[-1] / 3000 < 1.2


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.99])
def test_samples_cover_the_trial_and_are_interpolated_as_numpy_does(phase):
    times = sample_times(41, phase)
    assert times[0] <= 0
    assert times[-1] >= 40
    np.testing.assert_allclose(np.diff(times), 3.75)
    samples = np.random.default_rng(0).normal(size=len(times))
    expected = np.interp(np.arange(41), times, samples)
    np.testing.assert_allclose(samples @ interpolation_matrix(41, phase), expected, atol=1e-6)


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.99])
def test_a_sample_averages_the_past_eighth_of_a_second_before_the_latency(phase):
    ramp = np.arange(-LEAD_FRAMES, 41, dtype=float)
    np.testing.assert_allclose(
        ramp @ averaging_matrix(41, phase), sample_times(41, phase) - 2.4 - 3.75 / 2, atol=1e-5
    )


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.67, 0.99])
@pytest.mark.parametrize("latency", [0.0, 1.0, 2.4])
def test_a_sample_after_the_trial_sees_its_last_frame_go_on(phase, latency):
    drive = np.random.default_rng(0).normal(size=LEAD_FRAMES + 41)
    times = np.arange(-LEAD_FRAMES, 41)
    expected = [
        np.mean(
            [np.interp(time - latency - 3.75 * part, times, drive) for part in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
        )
        for time in sample_times(41, phase)
    ]
    averaged = drive @ averaging_matrix(41, phase, latency_frames=latency)
    np.testing.assert_allclose(averaged, expected, atol=1e-5)


def test_drawn_traces_have_the_expected_mean_and_variance():
    rates = np.array([[0.05, 0.3, 0.0, 1.0, 0.1, 0.2]])
    scale = np.array([3.0])
    num_frames, phase, repeats = 17, 0.5, 40_000
    drawn = draw_trace(
        np.repeat(rates, repeats, axis=0),
        scale=np.repeat(scale, repeats),
        num_frames=num_frames,
        phase=phase,
        generator=np.random.default_rng(0),
    )
    mean = expected_trace(rates, scale=scale, num_frames=num_frames, phase=phase)[0]
    variance = 9 * trace_variance(rates, num_frames=num_frames, phase=phase)[0]
    error = np.sqrt(variance / repeats)
    assert (np.abs(drawn.mean(axis=0) - mean) < 5 * error + 1e-6).all()
    np.testing.assert_allclose(drawn.var(axis=0), variance, rtol=0.1)
    assert AMPLITUDE_SHAPE > 0


def test_silence_is_never_exactly_zero():
    trace = draw_trace(
        np.zeros((4, 10)), scale=np.ones(4), num_frames=30, phase=0.2, generator=np.random.default_rng(0)
    )
    assert (trace != 0).all()
    assert np.abs(trace).max() < 1e-8


def make_presentations(num_cells: int, *, videos: int = 6, repeats: int = 3) -> list[Presentation]:
    generator = np.random.default_rng(1)
    num_frames = 61
    shown = []
    for video in range(videos):
        common = generator.gamma(2.0, size=(num_cells, len(sample_times(num_frames, 0.5))))
        shown += [
            Presentation(
                video=video,
                drive=common + 0.3 * generator.normal(size=common.shape),
                modulators=0.5 * generator.normal(size=(3, common.shape[1])),
                num_frames=num_frames,
                phase=0.5,
            )
            for _ in range(repeats)
        ]
    return shown


def test_signal_power_in_closed_form_agrees_with_the_estimate_from_drawn_repeats():
    cells = make_cells(30)
    shown = make_presentations(30, videos=40)
    tuning = tuning_at(1.0, shown, cells)
    generator = np.random.default_rng(2)
    drawn = np.stack(
        [
            draw_trace(
                tuning.stimulus_rates(one.drive) * modulation_gain(cells, one.modulators),
                scale=np.ones(30),
                num_frames=one.num_frames,
                phase=one.phase,
                generator=generator,
            )
            for one in shown
        ]
    )
    repeats = drawn.reshape(40, 3, 30, -1).transpose(1, 2, 0, 3).reshape(3, 30, -1)
    # Sahani & Linden 2003.
    power = (repeats.sum(axis=0).var(axis=-1) - repeats.var(axis=-1).sum(axis=0)) / (3 * 2)
    share = (power / repeats.transpose(1, 0, 2).reshape(30, -1).var(axis=-1)).mean()
    assert expected_signal_power(tuning, shown, cells) == pytest.approx(share, abs=0.03)


def test_tuning_reaches_the_wanted_signal_power_and_event_rates():
    cells = make_cells(10)
    shown = make_presentations(10)
    for wanted in (0.05, 0.15):
        tuning = tune(shown, cells, signal_power=wanted)
        assert expected_signal_power(tuning, shown, cells) == pytest.approx(wanted, abs=1e-4)
        rates = np.concatenate(
            [tuning.stimulus_rates(one.drive) * modulation_gain(cells, one.modulators) for one in shown],
            axis=1,
        )
        np.testing.assert_allclose(rates.mean(axis=1) * 8, cells.events_per_second)


def test_a_signal_power_out_of_reach_is_refused_with_the_reachable_one():
    with pytest.raises(ValueError, match=r"signal_power is 0.99, but must be above 0 and at most 0\.\d\d"):
        tune(make_presentations(5), make_cells(5), signal_power=0.99)


def test_a_map_without_scatter_is_a_linear_function_of_cortical_position():
    generator = np.random.default_rng(0)
    coordinates = draw_coordinates(300, generator)
    cells = draw_cells(
        coordinates,
        frame_shape=FRAME,
        complex_share=0.5,
        events_per_second=0.6,
        map_spread_px=(2.0, 3.0),
        scatter=0.0,
        generator=generator,
    )
    design = np.column_stack([coordinates[:, :2], np.ones(300)])
    fitted = design @ np.linalg.lstsq(design, cells.center_px, rcond=None)[0]
    assert np.abs(fitted - cells.center_px).max() < 1e-9
    assert np.allclose(cells.center_px.std(axis=0), [0.9 * 2.0, 0.9 * 3.0])
