"""Ray's cluster file, as far as a search from outside the cluster must know it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_PROJECT = Path(__file__).resolve().parents[1]
TOKEN_FILE = "auth_token"  # noqa: S105 - a file's name


class ClusterError(ValueError):
    """A cluster that cannot be used from here; the message says why and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """What a cluster file says.

    Attributes:
        path: the file.
        provider: kind of machines; ``local`` for those one owns.
        project: folder of the project on the head.
        workers: addresses of a local cluster's workers.
        ssh_user: who may log in there.
        ssh_key: with which key; None leaves it to SSH.
        min_workers: machines that are there without demand.
        gpus: of all workers together at the largest the cluster may become; 0 if the file does not say.
        cpus: likewise.
        token_file: on this machine.
    """

    path: Path
    provider: str
    project: str
    workers: tuple[str, ...]
    ssh_user: str
    ssh_key: Path | None
    min_workers: int
    gpus: int
    cpus: int
    token_file: Path

    @classmethod
    def read(cls, path: Path) -> "ClusterFile":
        """Read a cluster file; nothing in it is executed.

        Raises:
            ClusterError: it is missing, is none, or does not ship the project or the token.
        """
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ClusterError(f"{path} does not exist, but must be a cluster file of `ray up`") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ClusterError(f"{path} cannot be read as a cluster file: {reason}") from None
        try:
            return cls._of(path, config)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ClusterError):
                raise
            raise ClusterError(f"{path} is not a cluster file of `ray up`: {error!r}") from None

    @classmethod
    def _of(cls, path: Path, config: Mapping[str, Any]) -> "ClusterFile":
        provider, auth = config["provider"], config.get("auth") or {}
        mounts = {str(remote): Path(local).expanduser() for remote, local in config["file_mounts"].items()}
        gpus, cpus = _largest(config)
        key = auth.get("ssh_private_key")
        return cls(
            path=path,
            provider=str(provider["type"]),
            project=_project_on_head(path, mounts),
            workers=tuple(str(address) for address in provider.get("worker_ips", ())),
            ssh_user=str(auth.get("ssh_user", "ubuntu")),
            ssh_key=None if key is None else Path(key).expanduser(),
            min_workers=_min_workers(config),
            gpus=gpus,
            cpus=cpus,
            token_file=_token_file(path, mounts),
        )

    def token(self) -> str:
        """Return the token that every request must show.

        Raises:
            ClusterError: there is none: a cluster without one runs anybody's code.
        """
        value = os.environ.get("RAY_AUTH_TOKEN", "")
        if not value and self.token_file.is_file():
            value = self.token_file.read_text(encoding="utf-8").strip()
        if len(value) < 16:
            raise ClusterError(
                f"{self.token_file} holds no token, but a cluster without one runs anybody's code: "
                "make one as docs/operations.md says and run `ray up` again"
            )
        return value


def _project_on_head(path: Path, mounts: Mapping[str, Path]) -> str:
    for remote, local in mounts.items():
        # Relative ones start where `ray up` is called: in the project's folder.
        if (_PROJECT / local).resolve() == _PROJECT:
            return remote.rstrip("/")
    raise ClusterError(f"{path} does not ship the project: file_mounts must map a folder to . ({_PROJECT})")


def _token_file(path: Path, mounts: Mapping[str, Path]) -> Path:
    for local in mounts.values():
        if local.name == TOKEN_FILE:
            return local
        if local.name == ".striate":
            return local / TOKEN_FILE
    raise ClusterError(f"{path} does not ship a token: file_mounts must have ~/.striate: ~/.striate")


def _min_workers(config: Mapping[str, Any]) -> int:
    types = config.get("available_node_types") or {}
    return int(config.get("min_workers", 0)) + sum(int(kind.get("min_workers", 0)) for kind in types.values())


def _largest(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return GPUs and cores of all workers at the cluster's largest."""
    room = int(config.get("max_workers", 2))
    gpus = cpus = 0
    types = config.get("available_node_types") or {}
    workers = [kind for name, kind in types.items() if name != config.get("head_node_type")]
    for kind in sorted(workers, key=lambda kind: -int(kind["resources"].get("GPU", 0))):
        count = min(int(kind.get("max_workers", room)), room)
        room -= count
        gpus += count * int(kind["resources"].get("GPU", 0))
        cpus += count * int(kind["resources"].get("CPU", 0))
    return gpus, cpus
