"""MLflow at the edge of the ensembles: runs that it holds become members, builds become served models.

A model's columns are a mouse's name and three arrays as bytes of ``.npy`` files: a 300-frame trial as JSON
numbers is 71 MB of request and takes 29 s, as bytes it is 18 MB and takes 2 s.
"""

import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from jaxtyping import Shaped
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from data.recording import Recording
from ensembles.card import ABOUT, model_card
from ensembles.manifest import EnsembleManifest, hash_of
from ensembles.served import ServedEnsemble, export
from training.tracking import RUN_TAG, default_tracking_uri

logger = logging.getLogger(__name__)

MODEL = "striate-ensemble"
"""Name of the registered model: every build is a version of it, so that the best on the same data is one."""

CHAMPION = "champion"
COLUMNS = ("mouse", "video", "behavior", "pupil")
_CHECKPOINT = "checkpoint"
_ARTIFACT = "ensemble"
_PACKAGES = ("data", "models", "training", "ensembles")
_REQUIREMENTS = ("mlflow", "torch", "numpy", "einops", "jaxtyping", "pyarrow", "pandas")

# What MLflow runs when it loads the model; the class itself lives in a module, as classes must.
_CODE = """from mlflow.models import set_model

from ensembles.serving import EnsembleModel

set_model(EnsembleModel())
"""


def signature() -> ModelSignature:
    """Return the columns of requests and answers."""
    return ModelSignature(
        inputs=Schema([ColSpec("string", "mouse"), *(ColSpec("binary", name) for name in COLUMNS[1:])]),
        outputs=Schema([ColSpec("long", "first_frame"), ColSpec("binary", "predicted")]),
        params=ParamSchema([ParamSpec("half", "boolean", False)]),
    )


def to_bytes(array: Shaped[np.ndarray, "..."]) -> bytes:
    """Return an array as the bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_bytes(content: object, *, name: str) -> Shaped[np.ndarray, "..."]:
    """Read the bytes of a ``.npy`` file.

    Raises:
        ValueError: they are something else.
    """
    if not isinstance(content, bytes):
        raise ValueError(f"{name} is {type(content).__name__}, but must be the bytes of a .npy file")
    try:
        array: Shaped[np.ndarray, "..."] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{name} cannot be read as a .npy file: {error}") from error
    return array


class EnsembleModel(PythonModel):  # type: ignore[misc]
    """Answers rows of mouse, video, behavior and pupil with predicted responses."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the members once, comparing every file with its hash."""
        config = context.model_config or {}
        self._served = ServedEnsemble(
            Path(context.artifacts[_ARTIFACT]),
            device=config.get("device", "auto"),
            max_members=config.get("max_members"),
        )

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predict each row.

        Args:
            context: as in ``load_context``.
            model_input: columns ``COLUMNS``.
            params: ``half`` answers in half precision.
        """
        missing = [name for name in COLUMNS if name not in model_input.columns]
        if missing:
            raise ValueError(f"columns {', '.join(missing)} are missing, but must be {', '.join(COLUMNS)}")
        dtype = np.float16 if (params or {}).get("half") else np.float32
        rows = []
        for _, row in model_input.iterrows():
            arrays = [from_bytes(row[name], name=name) for name in COLUMNS[1:]]
            one = self._served.predict(row["mouse"], *arrays)
            rows.append({"first_frame": one.first_frame, "predicted": to_bytes(one.predicted.astype(dtype))})
        return pd.DataFrame(rows, columns=["first_frame", "predicted"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A build in MLflow's registry.

    Attributes:
        name: of the registered model.
        version: of it.
        is_champion: whether the alias ``champion`` points to it now.
        words: why.
    """

    name: str
    version: str
    is_champion: bool
    words: str


def save_model(root: Path, recordings: Sequence[Recording], to: Path) -> Path:
    """Write a finished build as an MLflow model into a folder, without a server.

    Args:
        root: folder of the build.
        recordings: the sessions it was built for.
        to: the model's folder; must not exist.
    """
    mlflow.pyfunc.save_model(path=str(to), **_model_arguments(root, recordings))
    return to


def _model_arguments(root: Path, recordings: Sequence[Recording]) -> dict[str, Any]:
    code = root / "serving" / "model.py"
    code.parent.mkdir(exist_ok=True)
    code.write_text(_CODE, encoding="utf-8")
    top = Path(__file__).parents[1]
    return {
        "python_model": str(code),
        "artifacts": {_ARTIFACT: str(export(root, recordings, root / "serving" / "ensemble"))},
        "code_paths": [str(top / package) for package in _PACKAGES],
        "signature": signature(),
        "pip_requirements": [f"{name}=={version(name).split('+')[0]}" for name in _REQUIREMENTS],
    }


def publish(
    root: Path, recordings: Sequence[Recording], *, uri: str, run_id: str, experiment: str
) -> Published:
    """Register a build as a model; the best one on the same data is the champion.

    A build that is registered already is not registered again.

    Args:
        root: folder of the build.
        recordings: the sessions it was built for.
        uri: MLflow tracking URI.
        run_id: our name of the build's run; it must have been sent.
        experiment: MLflow experiment of the run.
    """
    manifest = EnsembleManifest.read(root)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    identity = content_hash(manifest)
    number = _registered(client, identity)
    if number is None:
        number = _register(client, root, recordings, uri=uri, run_id=run_id, experiment=experiment)
    score = manifest.direct["single_trial"]
    tags = {
        "build": manifest.name,
        "content": identity,
        "score": repr(score),
        "data_sha256": manifest.data_sha256,
    }
    for key, value in tags.items():
        client.set_model_version_tag(MODEL, number, key, value)
    client.update_registered_model(MODEL, description=ABOUT)
    client.update_model_version(MODEL, number, description=model_card(manifest))
    is_champion, words = _compare(client, number, score=score, data=manifest.data_sha256)
    if is_champion:
        client.set_registered_model_alias(MODEL, CHAMPION, number)
    return Published(name=MODEL, version=str(number), is_champion=is_champion, words=words)


def content_hash(manifest: EnsembleManifest) -> str:
    """Return the hash of what a manifest says but for time."""
    used = [(name, manifest.member(name).checkpoint) for name in manifest.used]
    return hash_of(
        {
            "members": [(name, None if ref is None else ref.sha256) for name, ref in used],
            "weights": {session: dict(of) for session, of in manifest.weights.items()},
            "scales": {session: ref.sha256 for session, ref in (manifest.scales or {}).items()},
            "data": manifest.data_sha256,
        }
    )


def _registered(client: MlflowClient, identity: str) -> str | None:
    try:
        versions = client.search_model_versions(f"name = '{MODEL}'")
    except MlflowException:
        return None
    return next((str(of.version) for of in versions if of.tags.get("content") == identity), None)


def _register(
    client: MlflowClient,
    root: Path,
    recordings: Sequence[Recording],
    *,
    uri: str,
    run_id: str,
    experiment: str,
) -> str:
    found = client.get_experiment_by_name(experiment)
    runs = (
        [] if found is None else client.search_runs([found.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'")
    )
    if not runs:
        raise LookupError(f"run {run_id} has not been sent to {uri} yet")
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        with warnings.catch_warnings(), mlflow.start_run(run_id=runs[0].info.run_id):
            # The signature is given; an example of binary columns would show nobody anything.
            warnings.filterwarnings("ignore", message=".*input example was not provided.*")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            info = mlflow.pyfunc.log_model(
                name="ensemble", registered_model_name=MODEL, **_model_arguments(root, recordings)
            )
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    return str(info.registered_model_version)


def _compare(client: MlflowClient, number: str, *, score: float, data: str) -> tuple[bool, str]:
    try:
        champion = client.get_model_version_by_alias(MODEL, CHAMPION)
    except MlflowException:
        return True, "it is the first"
    if str(champion.version) == number:
        return True, "it is already"
    if champion.tags.get("data_sha256") != data:
        return False, f"version {champion.version} was scored on other data and stays champion"
    best = float(champion.tags["score"])
    if score > best:
        return True, f"{score:.5f} beats {best:.5f} of version {champion.version} on the same data"
    return False, f"{score:.5f} does not beat {best:.5f} of version {champion.version}, which stays champion"


def fetch_checkpoint(mlflow_run: str, *, root: Path) -> Path:
    """Return the kept encoder of an MLflow run, copied below ``root`` once.

    Args:
        mlflow_run: MLflow's id of the run.
        root: folder of runs; ``mlflow.db`` in it is asked unless ``MLFLOW_TRACKING_URI`` says otherwise.

    Raises:
        ValueError: there is no such run, or it logged no checkpoint.
    """
    uri = default_tracking_uri(root)
    folder = root / "cache" / "mlflow" / mlflow_run
    if (folder / _CHECKPOINT / "checkpoint.json").is_file():
        return folder / _CHECKPOINT
    client = MlflowClient(tracking_uri=uri)
    try:
        has_checkpoint = bool(client.list_artifacts(mlflow_run, _CHECKPOINT))
    except MlflowException as error:
        raise ValueError(f"run is {mlflow_run}, but {uri} does not hold it: {error.message}") from error
    if not has_checkpoint:
        raise ValueError(f"run is {mlflow_run}, but it logged no checkpoint in {uri}")
    # An interrupted copy has no name.
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{mlflow_run}.", dir=folder.parent))
    try:
        client.download_artifacts(mlflow_run, _CHECKPOINT, str(partial))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / _CHECKPOINT
