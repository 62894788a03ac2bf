"""The ten public mice of Sensorium 2023: facts about each recording and where to get it.

Source: the data set's description; Turishcheva et al. 2024 (arXiv:2407.09100); counts as in the trial tables
published by bryanlimy/ViV1T-closed-loop and anaflom/sensorium.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from data.recording import Stimulus, Tier

LICENSE_NOTICE = """\
Sensorium 2023 data: (c) their authors, licence CC BY-NC-ND 4.0
(https://creativecommons.org/licenses/by-nc-nd/4.0/).
The authors ask you to contact them before you use the data, and to have their permission before you publish
new analyses. See https://gin.g-node.org/pollytur/sensorium_2023_dataset; cite arXiv:2407.09100."""

BASE_URL = "https://gin.g-node.org/pollytur"
Release = Literal["old", "new"]

_FOLDER_OF_RELEASE = {"old": "Sensorium2023Data", "new": "sensorium_2023_dataset"}
# The release that Turishcheva et al. 2024 name in appendix A.8.2.
_COMPLETE_OLD_FOLDER = "sensorium_2023_data/raw/798ba8ad041d8f0f0ce879af396d52c7238c2730"
_HASH_OF_RELEASE = {"old": "8744edeac3b4d1ce16b680916b5267ce", "new": "9b4f6a1a067fe51e15306b9628efea20"}
# One old zip is known to have 7.7 GB, the five new ones 48 GB together.
_ZIP_BYTES_OF_RELEASE = {"old": 7_700_000_000, "new": 9_600_000_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicMouse:
    """One public recording.

    Attributes:
        letter: its short name, as used in the literature on the competition.
        session: the name of its folder.
        release: old, or new (competition mice: responses released for train and oracle only).
        num_neurons: neurons in every response array.
        num_padded_frames: frames of the stored arrays.
        num_trials: trials of each tier, in the order of ``Tier``.
        partner: letter of the mouse that was shown the same videos.
        live_bonus: classes of its live_test_bonus tier.
        final_bonus: classes of its final_test_bonus tier.
        zip_sha256: of the download, None where nobody published it.
    """

    letter: str
    session: str
    release: Release
    num_neurons: int
    num_padded_frames: int
    num_trials: tuple[int, int, int, int, int, int, int]
    partner: str
    live_bonus: tuple[Stimulus, ...]
    final_bonus: tuple[Stimulus, ...]
    zip_sha256: str | None = None

    @property
    def dtype(self) -> str:
        """Precision of the stored arrays."""
        return "float32" if self.release == "old" else "float64"

    @property
    def trials_of_tier(self) -> dict[Tier, int]:
        """Number of trials in each tier."""
        return dict(zip(Tier, self.num_trials, strict=True))

    @property
    def expected_zip_bytes(self) -> int:
        """Rough size of the download, for when the server does not say."""
        return _ZIP_BYTES_OF_RELEASE[self.release]

    def zip_url(self, base_url: str = BASE_URL, *, complete: bool = False) -> str:
        """Return where the zip lies.

        Args:
            base_url: GIN, or a mirror with the same folders.
            complete: of an old mouse, the later release, whose test tiers have responses too.
        """
        folder = f"{_FOLDER_OF_RELEASE[self.release]}/raw/master"
        if complete and self.release == "old":
            folder = _COMPLETE_OLD_FOLDER
        return f"{base_url.rstrip('/')}/{folder}/{self.session}.zip"


def _mouse(
    letter: str,
    number: str,
    num_neurons: int,
    *,
    release: Release,
    num_padded_frames: int,
    num_trials: tuple[int, int, int, int, int, int, int],
    partner: str,
    live_bonus: Stimulus,
    final_bonus: tuple[Stimulus, ...],
    zip_sha256: str | None = None,
) -> PublicMouse:
    return PublicMouse(
        letter=letter,
        session=f"dynamic{number}-Video-{_HASH_OF_RELEASE[release]}",
        release=release,
        num_neurons=num_neurons,
        num_padded_frames=num_padded_frames,
        num_trials=num_trials,
        partner=partner,
        live_bonus=(live_bonus,),
        final_bonus=final_bonus,
        zip_sha256=zip_sha256,
    )


_NOISE, _GABOR, _IMAGES = Stimulus.PINK_NOISE, Stimulus.GABOR, Stimulus.IMAGES
_DOT, _DOTS = Stimulus.GAUSSIAN_DOTS, Stimulus.RANDOM_DOTS

PUBLIC_MICE = (
    _mouse(
        "A", "29156-11-10", 7440, release="old", num_padded_frames=324, partner="F",
        num_trials=(350, 59, 56, 59, 58, 138, 20), live_bonus=_NOISE, final_bonus=(_DOT, _DOTS),
        zip_sha256="61915fa4e3f29da6c136cf71185e4cc38b0eb2c16fe2559db24fe8efffb178e7",
    ),
    _mouse(
        "B", "29228-2-10", 7928, release="old", num_padded_frames=324, partner="J",
        num_trials=(352, 60, 58, 59, 57, 118, 16), live_bonus=_GABOR, final_bonus=(_NOISE, _IMAGES),
    ),
    _mouse(
        "C", "29234-6-9", 8285, release="old", num_padded_frames=325, partner="G",
        num_trials=(355, 58, 58, 80, 59, 119, 11), live_bonus=_DOTS, final_bonus=(_GABOR, _IMAGES),
    ),
    _mouse(
        "D", "29513-3-5", 7671, release="old", num_padded_frames=403, partner="H",
        num_trials=(356, 59, 60, 59, 60, 120, 6), live_bonus=_IMAGES, final_bonus=(_NOISE, _DOT),
    ),
    _mouse(
        "E", "29514-2-9", 7495, release="old", num_padded_frames=315, partner="I",
        num_trials=(351, 60, 57, 58, 60, 137, 16), live_bonus=_DOT, final_bonus=(_DOTS, _GABOR),
    ),
    _mouse(
        "F", "29515-10-12", 7863, release="new", num_padded_frames=324, partner="A",
        num_trials=(348, 58, 56, 58, 57, 134, 0), live_bonus=_NOISE, final_bonus=(_DOT, _DOTS),
    ),
    _mouse(
        "G", "29623-4-9", 7908, release="new", num_padded_frames=325, partner="C",
        num_trials=(329, 56, 53, 57, 56, 131, 0), live_bonus=_GABOR, final_bonus=(_DOTS, _IMAGES),
    ),
    _mouse(
        "H", "29647-19-8", 8202, release="new", num_padded_frames=326, partner="D",
        num_trials=(354, 60, 60, 58, 59, 120, 0), live_bonus=_DOT, final_bonus=(_NOISE, _IMAGES),
    ),
    _mouse(
        "I", "29712-5-9", 7939, release="new", num_padded_frames=315, partner="E",
        num_trials=(359, 60, 60, 80, 60, 120, 0), live_bonus=_DOTS, final_bonus=(_DOT, _GABOR),
    ),
    _mouse(
        "J", "29755-2-8", 8122, release="new", num_padded_frames=414, partner="B",
        num_trials=(354, 59, 60, 60, 60, 119, 0), live_bonus=_IMAGES, final_bonus=(_NOISE, _GABOR),
    ),
)  # fmt: skip


def choose_mice(names: Sequence[str]) -> tuple[PublicMouse, ...]:
    """Look up mice by letter, session name (or its beginning), or old, new and all; each once, by letter.

    Raises:
        ValueError: a name is none of these; says the nearest.
    """
    chosen = {mouse.letter for name in names for mouse in _named(name)}
    return tuple(mouse for mouse in PUBLIC_MICE if mouse.letter in chosen)


def _named(name: str) -> list[PublicMouse]:
    if name == "all":
        return list(PUBLIC_MICE)
    if name in _FOLDER_OF_RELEASE:
        return [mouse for mouse in PUBLIC_MICE if mouse.release == name]
    found = [
        mouse
        for mouse in PUBLIC_MICE
        if name.upper() == mouse.letter
        or (len(name) > len("dynamic") and f"{mouse.session}.zip".startswith(name))
    ]
    if len(found) == 1:
        return found
    known = [*"ABCDEFGHIJ", "old", "new", "all", *(mouse.session for mouse in PUBLIC_MICE)]
    nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"mouse is {name!r}, but must be a letter from A to J, a session name, or one of old, new, all; "
        f"the nearest is {nearest!r}"
    )
