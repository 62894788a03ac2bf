"""The storage of a study that one process writes: Optuna's database, and a copy in memory for every read.

Optuna reads the runs in flight from the database again and again, and each hyperparameter and each epoch is
a transaction that waits for the disk: with 64 runs at a time that takes longer than all else a driver does.
Nobody else writes here, so nothing has to be read again, and writes wait for each other (``sync``). They
reach the disk in order: after a crash the database holds what it would hold if the driver had died a little
earlier.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from hpo.identity import StudyError

logger = logging.getLogger(__name__)


class _PatientSession(Session):
    """Optuna commits and closes after each of its writes; here that waits for ``write``."""

    is_broken = False

    def commit(self) -> None:
        """Let other statements of this session see what was written."""
        self.flush()

    def close(self) -> None:
        """Keep the transaction open."""

    def rollback(self) -> None:
        """Give up what waits, which memory holds already: this storage is of no use any more."""
        self.is_broken = True
        super().rollback()

    def write(self) -> None:
        """Commit in earnest."""
        super().commit()
        super().close()

    def end(self) -> None:
        """Close in earnest."""
        super().close()


class OneWriterStorage(InMemoryStorage):
    """Writes into a database first and into memory second; reads memory. For one thread.

    The caller sees to it that no other process writes (``Study`` holds a lock); others may read the database,
    which is as old as the last ``sync``.

    Args:
        url: of the database, which holds at most one study.

    Raises:
        StudyError: it holds several, or cannot be written: here, and by every method that writes.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._path = url.removeprefix("sqlite:///")
        self._session: _PatientSession | None = None
        with self._writing():
            self._backend = RDBStorage(url)
        factory = sessionmaker(bind=self._backend.engine, class_=_PatientSession)
        # One for all threads.
        sessions = scoped_session(factory, scopefunc=lambda: None)
        self._session = sessions()
        self._backend.scoped_session = sessions  # type: ignore[assignment]
        self._synced = time.monotonic()
        # In memory, a run's key is its number.
        self._keys: list[int] = []
        self._study_key: int | None = None
        self._is_composing = False
        studies = self._backend.get_all_studies()
        if len(studies) > 1:
            raise StudyError(f"{self._path} holds {len(studies)} studies, but must hold one")
        for study in studies:
            self._load(study._study_id, study.study_name, study.directions)
        self.sync()

    def _load(self, key: int, name: str, directions: Sequence[StudyDirection]) -> None:
        study_id = super().create_new_study(directions, name)
        self._study_key = key
        for attribute, value in self._backend.get_study_user_attrs(key).items():
            super().set_study_user_attr(study_id, attribute, value)
        for attribute, value in self._backend.get_study_system_attrs(key).items():
            super().set_study_system_attr(study_id, attribute, value)
        for trial in self._backend.get_all_trials(key, deepcopy=False):
            super().create_new_trial(study_id, trial)
            self._keys.append(trial._trial_id)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._session is not None and self._session.is_broken:
            raise StudyError(f"{self._path} could not be written before: give the same command again")
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            cause = error.__cause__ or error
            raise StudyError(
                f"{self._path} cannot be written ({getattr(cause, 'orig', cause)}), so the search ends here; "
                "what it holds stays. When the disk is well again, the same command goes on"
            ) from error

    def sync(self, *, after_seconds: float = 0.0) -> None:
        """Write to the disk what waits.

        Args:
            after_seconds: do nothing if that was done so short a time ago.
        """
        now = time.monotonic()
        if now - self._synced < after_seconds:
            return
        assert self._session is not None
        with self._writing():
            self._session.write()
        self._synced = now

    def dispose(self) -> None:
        """Write what waits, and close the database."""
        try:
            if self._session is not None and not self._session.is_broken:
                self.sync()
        except StudyError as error:
            # Epochs only, which their runs tell again.
            logger.warning("%s", error)
        finally:
            if self._session is not None:
                self._session.end()
            self._backend.engine.dispose()

    @contextmanager
    def composing(self) -> Iterator[None]:
        """Write the run that is asked for in here whole, at the end; an error leaves nothing of it."""
        self._is_composing = True
        try:
            yield
        except BaseException:
            self._forget_unwritten()
            raise
        finally:
            self._is_composing = False
        try:
            with self._writing():
                for trial in self._unwritten():
                    self._keys.append(self._backend.create_new_trial(self._key_of_study(), trial))
        except BaseException:
            self._forget_unwritten()
            raise

    def _unwritten(self) -> list[FrozenTrial]:
        return [] if self._study_key is None else self.get_all_trials(0, deepcopy=False)[len(self._keys) :]

    def _forget_unwritten(self) -> None:
        for trial in self._unwritten():
            del self._trial_id_to_study_id_and_number[trial._trial_id]
            self._studies[0].trials.remove(trial)
            self._max_trial_id -= 1

    def _key_of_study(self) -> int:
        assert self._study_key is not None
        return self._study_key

    def _key(self, trial_id: int) -> int | None:
        """Return a run's key in the database; None for one that is not written yet."""
        return self._keys[trial_id] if trial_id < len(self._keys) else None

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create the study."""
        if self._study_key is None:
            with self._writing():
                self._study_key = self._backend.create_new_study(directions, study_name)
        return super().create_new_study(directions, study_name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Note something about the study."""
        with self._writing():
            self._backend.set_study_user_attr(self._key_of_study(), key, value)
        super().set_study_user_attr(study_id, key, _as_stored(value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Note something of Optuna's about the study."""
        with self._writing():
            self._backend.set_study_system_attr(self._key_of_study(), key, value)
        super().set_study_system_attr(study_id, key, _as_stored(value))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a run."""
        if not self._is_composing:
            with self._writing():
                self._keys.append(self._backend.create_new_trial(self._key_of_study(), template_trial))
        return super().create_new_trial(study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Store a hyperparameter."""
        if (key := self._key(trial_id)) is not None:
            with self._writing():
                self._backend.set_trial_param(key, param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Store where a run stands, and its score."""
        if (key := self._key(trial_id)) is not None:
            with self._writing():
                self._backend.set_trial_state_values(key, state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Store the score of an epoch."""
        if (key := self._key(trial_id)) is not None:
            with self._writing():
                self._backend.set_trial_intermediate_value(key, step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Note something about a run."""
        if (written := self._key(trial_id)) is not None:
            with self._writing():
                self._backend.set_trial_user_attr(written, key, value)
        super().set_trial_user_attr(trial_id, key, _as_stored(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Note something of Optuna's about a run."""
        if (written := self._key(trial_id)) is not None:
            with self._writing():
                self._backend.set_trial_system_attr(written, key, value)
        super().set_trial_system_attr(trial_id, key, _as_stored(value))


def _as_stored(value: Any) -> Any:
    """Return a value as the database would give it back: tuples are lists."""
    return json.loads(json.dumps(value))
