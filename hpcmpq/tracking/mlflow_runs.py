"""A run in a directory of MLflow, written by MLflow itself: no server, no network. The only user of mlflow."""

import os
import re
import time
import warnings
from pathlib import Path

from hpcmpq.errors import UserError
from hpcmpq.store.run_dir import RunDir
from hpcmpq.tracking.record import Record, record_of

EXPERIMENT = "hpcmpq"
MAX_VALUE = 500
"""Characters of a setting that every version of MLflow takes."""


def track(run: RunDir, directory: Path) -> str:
    """Add a run to a directory of MLflow as it is now; returns MLflow's id of it.

    Args:
        run: A solved run directory.
        directory: Of MLflow; made if missing. `mlflow ui --backend-store-uri DIRECTORY` shows it.

    Raises:
        UserError: If mlflow is not installed, or the run is not solved yet.
    """
    record = record_of(run)
    # Nothing may reach for the network, and a directory is what a cluster's file system can hold without a database.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise UserError(
            f"tracking needs {error.name}, which is not installed; run `pip install 'hpcmpq[tracking]'`"
        ) from None
    directory.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that directories are in maintenance mode
        client = MlflowClient(tracking_uri=directory.resolve().as_uri())
        return _write(client, record)


def _write(client: "MlflowClient", record: Record) -> str:  # type: ignore[name-defined]  # noqa: F821
    from mlflow.entities import Metric, Param

    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = client.create_experiment(EXPERIMENT) if found is None else found.experiment_id
    run = client.create_run(experiment, run_name=record.name, tags=dict(record.tags)).info.run_id
    now = int(1000 * time.time())
    metrics = [Metric(_name(name), value, now, 0) for name, value in record.metrics.items()]
    for step, point in enumerate(record.frontier):
        metrics += [Metric(_name(name), value, now, step) for name, value in point.items()]
    for start in range(0, len(metrics), 900):
        client.log_batch(run, metrics=metrics[start : start + 900])
    settings = [Param(_name(key), value[:MAX_VALUE]) for key, value in record.settings.items()]
    for start in range(0, len(settings), 90):
        client.log_batch(run, params=settings[start : start + 90])
    for path in record.files:
        client.log_artifact(run, str(path))
    client.set_terminated(run)
    return str(run)


def _name(text: str) -> str:
    """A name in the letters that MLflow takes.

    Example:
        >>> _name("solver.fixed.model.layers.*")
        'solver.fixed.model.layers._'
    """
    return re.sub(r"[^\w\-. /]", "_", text)
