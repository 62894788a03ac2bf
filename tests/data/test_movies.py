import builtins
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data.movies import MovieLibrary, find_movies

ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
SMALL = (18, 32)


def make_movie(path: Path, source: str) -> None:
    subprocess.run([ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, "-y", str(path)], check=True)


def test_a_movie_of_another_rate_and_shape_becomes_distinct_grey_clips_at_30_hz(tmp_path):
    make_movie(tmp_path / "a.mkv", "testsrc2=size=96x96:rate=25:duration=4")
    movies = MovieLibrary(tmp_path, clip_frames=30, frame_shape=SMALL)
    assert len(movies) == 4
    clips = [movies.clip(number) for number in range(4)]
    assert all(clip.shape == (30, *SMALL) and clip.dtype == np.float32 for clip in clips)
    assert all(0 <= clip.min() < clip.max() <= 255 for clip in clips)
    assert len({clip.tobytes() for clip in clips}) == 4
    assert "4 distinct clips of 30 frames" in str(movies)


def test_frames_are_cropped_to_16_by_9_around_the_center(tmp_path):
    # White above and below a black band: a square movie keeps its middle 9 / 16.
    source = "color=white:size=64x64:rate=30:duration=1,drawbox=x=0:y=16:w=64:h=32:color=black:t=fill"
    noise = ",noise=alls=40:allf=t"
    make_movie(tmp_path / "a.mkv", source + noise)
    clip = MovieLibrary(tmp_path, clip_frames=30, frame_shape=SMALL).clip(0)
    assert clip[:, 2:-2].mean() < 60
    assert clip[:, 0].mean() > 100


def test_copies_and_flat_clips_are_not_distinct(tmp_path):
    make_movie(tmp_path / "a.mkv", "testsrc2=size=64x36:rate=30:duration=1")
    (tmp_path / "b.mkv").write_bytes((tmp_path / "a.mkv").read_bytes())
    make_movie(tmp_path / "c.mkv", "color=black:size=64x36:rate=30:duration=2")
    movies = MovieLibrary(tmp_path, clip_frames=30, frame_shape=SMALL)
    assert len(movies) == 1
    with pytest.raises(ValueError, match="needs 2 clips; add movies"):
        movies.require(2)


def test_a_folder_without_movies_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no video files"):
        find_movies(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        find_movies(tmp_path / "missing")
    (tmp_path / "a.mp4").write_bytes(b"not a movie")
    with pytest.raises(ValueError, match=r"a\.mp4 is not a video that ffmpeg can read"):
        MovieLibrary(tmp_path, clip_frames=30, frame_shape=SMALL)


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"anything")
    real_import = builtins.__import__

    def without_ffmpeg(name, *arguments, **keywords):
        if name == "imageio_ffmpeg":
            raise ModuleNotFoundError("No module named 'imageio_ffmpeg'", name=name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_ffmpeg)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[movies\]'"):
        MovieLibrary(tmp_path, clip_frames=30, frame_shape=SMALL)
