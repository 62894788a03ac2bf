"""MLflow at the edge of the ensembles: runs that it holds become members."""

from pathlib import Path

from training.tracking import default_tracking_uri

_CHECKPOINT = "checkpoint"


def fetch_checkpoint(mlflow_run: str, *, root: Path) -> Path:
    """Return the kept encoder of an MLflow run, copied below ``root`` once.

    Args:
        mlflow_run: MLflow's id of the run.
        root: folder of runs; ``mlflow.db`` in it is asked unless ``MLFLOW_TRACKING_URI`` says otherwise.

    Raises:
        ValueError: there is no such run, or it logged no checkpoint.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

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
    folder.mkdir(parents=True, exist_ok=True)
    client.download_artifacts(mlflow_run, _CHECKPOINT, str(folder))
    return folder / _CHECKPOINT
