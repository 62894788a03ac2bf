"""How MLflow's page shows an experiment: which columns, and what to filter by.

MLflow keeps a shared view of its page in a tag of the experiment; ``?viewStateShareKey=striate`` opens it.
Its form is that of MLflow 3.17 (``makeCanonicalSortKey`` and ``createExperimentPageUIState`` of its page).
"""

import json

VIEW_KEY = "striate"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
NOTE_TAG = "mlflow.note.content"
NAME_TAG = "mlflow.runName"

_RUN_COLUMNS = (
    ("tags", "outcome"),
    ("metrics", "best_score"),
    ("metrics", "score"),
    ("metrics", "loss"),
    ("params", "optimizer.core_lr"),
    ("params", "optimizer.readout_lr"),
    ("params", "loader.batch_size"),
    ("attributes", "Duration"),
    ("tags", "seed"),
    ("tags", "fold"),
    ("tags", "reason"),
)
_BUILD_COLUMNS = (
    ("tags", "outcome"),
    ("metrics", "chosen/single_trial"),
    ("metrics", "mean/single_trial"),
    ("metrics", "gain/single_trial"),
    ("metrics", "members_used"),
    ("metrics", "best_score"),
    ("tags", "model"),
    ("tags", "seed"),
    ("tags", "fold"),
    ("attributes", "Duration"),
)
_FILTERS = (
    "tags.kind = 'run'",
    "tags.outcome = 'finished'",
    "tags.study = 'vivit-demo'",
    "tags.model = 'vivit' and tags.seed = '0'",
    "tags.fold = '0'",
    "tags.commit LIKE 'a1b2%'",
    "tags.data LIKE '%f00d%'",
    "metrics.best_score > 0.4",
)


def view_state(kind: str) -> str:
    """Return the shared view of an experiment, as MLflow's page reads it.

    Which parents are unfolded cannot be shared: the page leaves that out of what it reads.

    Args:
        kind: of the experiment's first run: ``build``, or anything else.
    """
    columns = [f"{group}.`{name}`" for group, name in (_BUILD_COLUMNS if kind == "build" else _RUN_COLUMNS)]
    return json.dumps({"selectedColumns": columns, "columnOrder": columns})


def view_link(experiment_id: str) -> str:
    """Return the path of an experiment's page, below the server's address, with our columns."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW_KEY}"


def note(experiment_id: str) -> str:
    """Return the description of an experiment: the link to its view, and filters to copy."""
    filters = "\n".join(f"- `{text}`" for text in _FILTERS)
    return f"[Scores and outcomes first]({view_link(experiment_id)})\n\nFilters, for example:\n\n{filters}\n"
