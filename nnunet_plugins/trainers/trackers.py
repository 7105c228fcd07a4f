"""What follows a training: TensorBoard and MLflow, as loggers of nnU-Net's kind. They never end it.

Both are off unless an environment variable asks for them, and get their numbers an epoch at a time. What is written is
told in docs/tracking.md.
"""

import contextlib
import importlib
import io
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from numpy.typing import NDArray

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock
from nnunet_plugins.trainers.fold_folder import TENSORBOARD

TENSORBOARD_ON = "nnUNet_plugins_tensorboard"
"""Environment variable: 1 to write events for TensorBoard."""

MLFLOW_ON = "nnUNet_plugins_mlflow"
"""Environment variable: 1 for an MLflow store beside the results, or the URI of another one."""

PICTURES = "nnUNet_plugins_pictures"
"""Environment variable: a picture of a validation patch every so many epochs, and 0 for none."""

_RUN_TAG = "nnunet_plugins.run"

# What MLflow itself would do at most. A training does not wait for minutes for a server that is away.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True)
class About:
    """Which training it is.

    Attributes:
        folder: the fold's.
        results: nnU-Net's folder of results.
        run: name of the run, which a resumed training keeps.
        dataset: its name.
        facts: the settings to show.
    """

    folder: Path
    results: Path
    run: str
    dataset: str
    facts: Mapping[str, object]


class Store(ABC):
    """A place that keeps what is followed. Whatever its methods raise, its tracker tells."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to look for if it fails."""

    @property
    def is_near(self) -> bool:
        """Whether what it gets stays on this machine and its disks."""
        return True

    @abstractmethod
    def open(self, about: About, begin: int) -> None:
        """Begin, or go on: what it has of `begin` and later steps is out of date."""

    @abstractmethod
    def write(self, values: Mapping[str, float], step: int, pictures: Mapping[str, NDArray]) -> None:
        """Keep the values and the pictures `(height, width, 3)` of a step."""

    @abstractmethod
    def close(self, status: str) -> None:
        """End; `status` is "FINISHED", "KILLED" or "FAILED"."""


class TensorBoardStore(Store):
    """Event files for TensorBoard in the fold's folder.

    They are written here, and at once: PyTorch's `SummaryWriter` has a thread do it, where a full disk is a traceback.
    """

    name = "TensorBoard"
    remedy = "Is there room in the fold's folder, and may it be written? The next start with --c goes on with it"

    def __init__(self) -> None:
        _require("torch.utils.tensorboard", "tensorboard", TENSORBOARD_ON)

    def open(self, about: About, begin: int) -> None:
        """Begin a file, with the mark by which readers leave out the steps that are repeated."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder = about.folder / TENSORBOARD
        folder.mkdir(exist_ok=True)
        # Readers take the files in the order of their names.
        self._file = folder / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
        self._append([{"file_version": "brain.Event:2"}, {"step": begin, "session_log": SessionLog(status="START")}])

    def write(self, values: Mapping[str, float], step: int, pictures: Mapping[str, NDArray]) -> None:
        """Append events."""
        from torch.utils.tensorboard import summary

        summaries = [summary.scalar(name, value) for name, value in values.items()]
        summaries += [summary.image(name, picture, dataformats="HWC") for name, picture in pictures.items()]
        self._append([{"step": step, "summary": one} for one in summaries])

    def close(self, status: str) -> None:
        """Do nothing: all is written."""

    def _append(self, events: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard import RecordWriter

        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        with self._file.open("ab") as file:
            file.write(records.getvalue())


class MlflowStore(Store):
    """A run of MLflow, which a resumed training goes on with.

    Args:
        uri: where; None for a file of SQLite in nnU-Net's folder of results.
    """

    name = "MLflow"

    def __init__(self, uri: str | None) -> None:
        self.uri = uri
        for setting, value in _MLFLOW_SETTINGS.items():  # before it is imported for the first time
            os.environ.setdefault(setting, value)
        _require("mlflow", "mlflow", MLFLOW_ON)
        if not self._is_server:
            _require("mlflow.store.tracking.sqlalchemy_store", "mlflow", MLFLOW_ON)

    @property
    def remedy(self) -> str:
        """What to look for if it fails."""
        parts = urlsplit(self.uri or "")
        # Not the whole of it, in which there may be a password.
        where = f"{parts.scheme}://{parts.hostname or ''}" if self.uri else "the folder of results"
        return f"Does {where} answer, and may it be written? The next start with --c goes on with it"

    @property
    def is_near(self) -> bool:
        """Whether what it gets stays on this machine and its disks."""
        host = urlsplit(self.uri).hostname if self.uri else None
        return host in (None, "localhost", "127.0.0.1", "::1") and "databricks" not in (self.uri or "")

    @property
    def _is_server(self) -> bool:
        return bool(self.uri) and urlsplit(self.uri).scheme in ("http", "https", "databricks")

    def open(self, about: About, begin: int) -> None:
        """Find the training's run, or begin it; it keeps what it has."""
        with contextlib.ExitStack() as stack:
            if not self._is_server:
                self._require_answer(about.results)
                # Two trainings that begin at once would both make the tables of a new store, and one would fail.
                with contextlib.suppress(OSError):
                    stack.enter_context(hold_lock(about.results / "mlflow.lock", waiting=lambda: None))
            self._open(about)

    def places(self, results: Path) -> tuple[str, str | None]:
        """Return the URI of the store, and that of the folder for pictures; None where a server knows it.

        Args:
            results: nnU-Net's folder of results, which its variable may name from the working directory on.
        """
        results = results.absolute()
        uri = self.uri or f"sqlite:///{results / 'mlflow.db'}"
        # Otherwise pictures would come into the folder in which the training was started.
        return uri, None if self._is_server else (results / "mlflow_artifacts").as_uri()

    def _require_answer(self, results: Path) -> None:
        """Ask a database once, shortly: MLflow asks ten times, and all other trainings would wait for that."""
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url
        from sqlalchemy.pool import NullPool

        url = make_url(self.places(results)[0])
        if url.get_backend_name() == "file":
            return
        limits = {"connect_timeout": 10} if url.get_backend_name() in ("postgresql", "mysql") else {}
        create_engine(url, connect_args=limits, poolclass=NullPool).connect().close()

    def _open(self, about: About) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        uri, artifacts = self.places(about.results)
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = self._client.get_experiment_by_name(about.dataset)
        if experiment is None:
            try:
                self._client.create_experiment(about.dataset, artifact_location=artifacts)
            except MlflowException:  # another training was faster
                if self._client.get_experiment_by_name(about.dataset) is None:
                    raise
            experiment = self._client.get_experiment_by_name(about.dataset)
        assert experiment is not None
        ours = f"tags.`{_RUN_TAG}` = '{about.run}'"
        runs = self._client.search_runs([experiment.experiment_id], filter_string=ours, max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        name = "{trainer} {plans} {configuration} fold {fold}".format(**about.facts)
        tags = {_RUN_TAG: about.run, "folder": str(about.folder)}
        self._run = self._client.create_run(experiment.experiment_id, run_name=name, tags=tags).info.run_id
        self._client.log_batch(self._run, params=[Param(key, str(value)) for key, value in about.facts.items()])

    def write(self, values: Mapping[str, float], step: int, pictures: Mapping[str, NDArray]) -> None:
        """Send the values at once, then the pictures."""
        from mlflow.entities import Metric

        now, most = round(1000 * time.time()), 1000  # of one call
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        for first in range(0, len(metrics), most):
            self._client.log_batch(self._run, metrics=metrics[first : first + most])
        for name, picture in pictures.items():
            self._client.log_image(self._run, picture, key=name, step=step)

    def close(self, status: str) -> None:
        """Tell how it ended."""
        self._client.set_terminated(self._run, status)


class Tracker:
    """A logger as nnU-Net calls it, which passes on to a store; what goes wrong there is told once, and is all.

    Args:
        store: where to.
        names: of what nnU-Net calls otherwise.
        tell: called with a warning.
        last: the step for numbers about the whole training.
    """

    def __init__(self, store: Store, names: Mapping[str, str], tell: Callable[[str], None], last: int) -> None:
        self.store: Store | None = store
        self.names, self.tell, self.last = names, tell, last
        self._values: dict[str, float] = {}

    def open(self, about: About, begin: int) -> None:
        """Begin, or go on from the step `begin`."""
        self._try(lambda store: store.open(about, begin))

    def update_config(self, config: dict) -> None:
        """Do nothing: the settings are told when it opens."""

    def log(self, key: str, value: Any, step: int) -> None:
        """Keep a number until the epoch ends, if it has a name here."""
        if key in self.names:
            self._values[self.names[key]] = float(value)

    def log_summary(self, key: str, value: Any) -> None:
        """Write a number about the whole training."""
        self._try(lambda store: store.write({self.names.get(key, clean(key)): float(value)}, self.last, {}))

    def end_epoch(self, epoch: int, values: Mapping[str, float], pictures: Mapping[str, NDArray]) -> None:
        """Write what nnU-Net has logged in an epoch, and more."""
        self._values, logged = {}, self._values
        self._try(lambda store: store.write({**logged, **values}, epoch, pictures))

    def close(self, status: str) -> None:
        """End it."""
        self._try(lambda store: store.close(status))

    def _try(self, do: Callable[[Store], None]) -> None:
        if self.store is None:
            return
        try:
            do(self.store)
        except Exception as error:  # whatever the packages, databases and servers of others raise
            store, self.store = self.store, None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = re.sub(r"://[^/@\s]+@", "://", reason)  # a URI's password
            self.tell(
                f"WARNING: nnunet_plugins: {store.name} gets no more of this training, which goes on: {reason}. "
                f"{store.remedy}."
            )


def wanted_stores() -> list[Store]:
    """Return the stores that the environment asks for.

    Raises:
        InputError: if a package for one is missing, or a variable has another value than it may have.
    """
    stores: list[Store] = []
    tensorboard, mlflow = (os.environ.get(name, "0") for name in (TENSORBOARD_ON, MLFLOW_ON))
    if _switch(tensorboard, TENSORBOARD_ON, "1"):
        stores.append(TensorBoardStore())
    if "://" in mlflow:
        stores.append(MlflowStore(mlflow))
    elif _switch(mlflow, MLFLOW_ON, "1, or the URI of a store such as http://localhost:5000"):
        stores.append(MlflowStore(None))
    return stores


def epochs_between_pictures() -> int | None:
    """Return what the environment says; None if it says nothing.

    Raises:
        InputError: if it is no whole number from 0.
    """
    text = os.environ.get(PICTURES)
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError(
            f"nnunet_plugins: {PICTURES}={text!r} is no number of epochs; use for example 20, or 0 for none"
        )
    return int(text)


def clean(name: str) -> str:
    """Return a name that both take: letters, digits, and `_.-`, other signs becoming `_`."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "_"


def _switch(text: str, variable: str, on: str) -> bool:
    if text.lower() in ("0", "false", ""):
        return False
    if text.lower() in ("1", "true"):
        return True
    raise InputError(f"nnunet_plugins: {variable}={text!r} means nothing; set it to {on}, or to 0 for none")


def _require(module: str, package: str, variable: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"nnunet_plugins: {variable} is set, but {package} cannot be imported here ({error}). Install it, "
            f"pip install {package}, or train without it: unset {variable}"
        ) from error
