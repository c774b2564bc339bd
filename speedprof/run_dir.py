"""The run directory: one folder that holds a capture, readable wherever and whenever it is opened.

    <run-id>/
      manifest.json            written by the launcher alone, closed last
      rank<r>.json             written by rank r alone: how far it came, what it declared, how it ended
      steps/rank<r>.steps      every step of the rank (speedprof.step_records)
      kineto/rank<r>.<ns>.pt.trace.json.gz
      logs/rank<r>.log         what the rank printed; logs/launcher.log is torch.distributed.run's own
      events.out.tfevents.*    TensorBoard scalars
      derived/                 whatever viewers need; may be deleted, not in the manifest

Standard library only, so that it works inside any training process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from speedprof.errors import UnknownVersionError, UnreadableError

# The versions of the run directory. A reader refuses a version that is not here.
#   1  2026-11-21  the first
FORMAT_VERSION = 1


class RunStatus(StrEnum):
    """How a run, or one rank of it, stands."""

    RUNNING = "running"
    COMPLETE = "complete"
    PARTIAL = "partial"  # the program ended by itself before the plan was fulfilled
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class ArtifactKind(StrEnum):
    STEPS = "steps"
    KINETO = "kineto"
    LOG = "log"
    RANK = "rank"
    TENSORBOARD = "tensorboard"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of the run, its path relative to the run directory."""

    path: str
    kind: ArtifactKind
    rank: int | None
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """What one rank says of itself in rank<r>.json.

    `stage_of_plan` is where in the plan it stands (see speedprof.capture.plan.Mark), `last_step` the last step it
    began. `error` is the traceback or message it died of.
    """

    rank: int
    host: str
    pid: int
    status: RunStatus
    device: str | None = None
    stage_of_plan: str | None = None
    last_step: int | None = None
    num_marked: dict[str, int] = field(default_factory=dict)
    exit_code: int | None = None
    error: str | None = None
    failed_at_ns: int | None = None
    declared: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole run: what was asked, where it ran, what the program declared, and every file."""

    format_version: int
    run_id: str
    created: str
    status: RunStatus
    launcher_host: str
    launcher_pid: int
    plan: dict[str, Any]
    command: list[str]
    environment: dict[str, Any]
    failure: str | None = None
    declared: dict[str, Any] = field(default_factory=dict)
    ranks: list[RankRecord] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def launcher_log_path(self) -> Path:
        return self.path / "logs" / "launcher.log"

    def rank_path(self, rank: int) -> Path:
        return self.path / f"rank{rank}.json"

    def steps_path(self, rank: int) -> Path:
        return self.path / "steps" / f"rank{rank}.steps"

    def log_path(self, rank: int) -> Path:
        return self.path / "logs" / f"rank{rank}.log"

    def kineto_path(self, rank: int, started_ns: int) -> Path:
        """Named so that torch-tb-profiler takes all ranks for workers of one run."""
        return self.path / "kineto" / f"rank{rank}.{started_ns}.pt.trace.json.gz"

    def kineto_paths(self) -> list[Path]:
        return sorted(self.path.glob("kineto/*.pt.trace.json*"), key=_rank_in_name)

    def steps_paths(self) -> list[Path]:
        return sorted(self.path.glob("steps/*.steps"), key=_rank_in_name)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` so that `path` holds either the old content or all of the new.

    With `durable`, it survives a power cut as well, for about a millisecond more.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_manifest(run_dir: RunDir, manifest: Manifest) -> None:
    write_atomically(run_dir.manifest_path, _to_json(manifest))


def write_rank_record(run_dir: RunDir, record: RankRecord, *, durable: bool) -> None:
    write_atomically(run_dir.rank_path(record.rank), _to_json(record), durable=durable)


def overwrite_rank_record(run_dir: RunDir, record: RankRecord) -> None:
    """Write over the record as it lies there, which needs no room on a full disk but is not whole at every instant."""
    with open(run_dir.rank_path(record.rank), "r+b") as file:
        file.write(_to_json(record))
        file.truncate()


def close_manifest(run_dir: RunDir, manifest: Manifest, *, status: RunStatus, failure: str | None) -> Manifest:
    """Write the manifest for the last time. Raises OSError where it cannot be written."""
    closed = _closed(run_dir, manifest, status=status, failure=failure)
    write_manifest(run_dir, closed)
    return closed


def _closed(run_dir: RunDir, manifest: Manifest, *, status: RunStatus, failure: str | None) -> Manifest:
    """The manifest with how the run ended, what its ranks said, and every file's checksum.

    A rank that still says it is running did not live to say otherwise: it is written down as failed.
    """
    records = [
        replace(record, status=RunStatus.FAILED) if record.status is RunStatus.RUNNING else record
        for record in read_rank_records(run_dir)
    ]
    return replace(
        manifest,
        status=status,
        failure=failure,
        ranks=records,
        declared=records[0].declared if records else {},
        artifacts=find_artifacts(run_dir),
    )


def read_manifest(run_dir: RunDir) -> Manifest:
    """The manifest as it stands; one that says `running` of a launcher that is gone reads as interrupted.

    Raises UnreadableError where there is none, where it is damaged, or where another version wrote it.
    """
    path = run_dir.manifest_path
    document = _read_document(path)
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise UnknownVersionError(
            f"{path}: run format version {version!r} is not known here",
            next_step=f"this speedprof reads version {FORMAT_VERSION}; read it with the speedprof that wrote it",
        )
    try:
        manifest = _manifest_from(document)
    except (TypeError, ValueError, KeyError) as error:
        raise UnreadableError(f"{path}: not a manifest ({error})", next_step=_rebuild_hint(path)) from error
    if manifest.status is RunStatus.RUNNING and not is_launcher_alive(manifest):
        return replace(manifest, status=RunStatus.INTERRUPTED)
    return manifest


def read_or_rebuild_manifest(run_dir: RunDir) -> tuple[Manifest, bool]:
    """The manifest, closed now if its launcher died before it could, and whether that was so.

    Raises UnreadableError where nothing of the run is left to rebuild it from, or where another version wrote it.
    """
    try:
        manifest = read_manifest(run_dir)
        # A launcher that died after its ranks had done their part lost nothing but the closing.
        status = RunStatus.COMPLETE if _have_all_completed(run_dir) else RunStatus.INTERRUPTED
    except UnknownVersionError:
        raise
    except UnreadableError:
        if not read_rank_records(run_dir):
            raise
        manifest, status = _bare_manifest(run_dir), RunStatus.INTERRUPTED
    if manifest.status is not RunStatus.INTERRUPTED or manifest.artifacts:
        return manifest, False
    closed = _closed(run_dir, manifest, status=status, failure=manifest.failure)
    with contextlib.suppress(OSError):  # a full or read-only disk does not keep it from being told
        write_manifest(run_dir, closed)
    return closed, True


def _have_all_completed(run_dir: RunDir) -> bool:
    return {record.status for record in read_rank_records(run_dir)} == {RunStatus.COMPLETE}


def _bare_manifest(run_dir: RunDir) -> Manifest:
    """A manifest for a run whose own is lost: what was asked and where it ran is not known any more."""
    return Manifest(
        format_version=FORMAT_VERSION,
        run_id=run_dir.path.resolve().name,
        created="",
        status=RunStatus.INTERRUPTED,
        launcher_host="",
        launcher_pid=0,
        plan={},
        command=[],
        environment={},
    )


def read_rank_records(run_dir: RunDir) -> list[RankRecord]:
    """What each rank said last, in the order of ranks; a record that cannot be read is left out."""
    records = []
    for path in sorted(run_dir.path.glob("rank*.json"), key=_rank_in_name):
        try:
            document = _read_document(path)
            records.append(_rank_record_from(document))
        except (UnreadableError, TypeError, ValueError, KeyError):
            continue
    return records


def is_launcher_alive(manifest: Manifest) -> bool:
    """Whether the launcher that wrote this still runs; a launcher on another host is believed to."""
    return manifest.launcher_host != socket.gethostname() or is_process_alive(manifest.launcher_pid)


def is_process_alive(pid: int) -> bool:
    """Whether a process of this host runs, zombies left out."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


def find_artifacts(run_dir: RunDir) -> list[Artifact]:
    """Every file of the run with its checksum, but for the manifest, derived files and unfinished ones."""
    return [
        Artifact(
            path=path.relative_to(run_dir.path).as_posix(),
            kind=_kind_of(path),
            rank=_rank_in_name(path) if path.name.startswith("rank") else None,
            num_bytes=path.stat().st_size,
            sha256=_sha256(path),
        )
        for path in _artifact_paths(run_dir)
    ]


def find_damage(run_dir: RunDir, manifest: Manifest) -> list[str]:
    """What no longer agrees with the manifest: one sentence for each file that is missing, changed or new."""
    known = {artifact.path: artifact for artifact in manifest.artifacts}
    found = {artifact.path: artifact for artifact in find_artifacts(run_dir)}
    missing = [f"{path} is missing" for path in known.keys() - found.keys()]
    changed = [
        f"{path} has changed since the run was closed"
        for path in known.keys() & found.keys()
        if known[path].sha256 != found[path].sha256
    ]
    new = [f"{path} is not in the manifest" for path in found.keys() - known.keys()]
    return sorted(missing + changed + new)


def _artifact_paths(run_dir: RunDir) -> Iterator[Path]:
    for path in sorted(run_dir.path.rglob("*")):
        parts = path.relative_to(run_dir.path).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden and parts[0] not in {"derived", "manifest.json"}:
            yield path


_KIND_OF_FOLDER = {"steps": ArtifactKind.STEPS, "kineto": ArtifactKind.KINETO, "logs": ArtifactKind.LOG}


def _kind_of(path: Path) -> ArtifactKind:
    if path.name.startswith("events.out.tfevents"):
        return ArtifactKind.TENSORBOARD
    if path.name.startswith("rank") and path.suffix == ".json":
        return ArtifactKind.RANK
    return _KIND_OF_FOLDER.get(path.parent.name, ArtifactKind.OTHER)


def _rank_in_name(path: Path) -> int:
    digits = path.name.removeprefix("rank").split(".")[0]
    return int(digits) if digits.isdigit() else -1


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_json(value: Manifest | RankRecord) -> bytes:
    return (json.dumps(asdict(value), indent=1) + "\n").encode()


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UnreadableError(f"{path}: there is no such file", next_step=_rebuild_hint(path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: cannot be read ({error})", next_step=_rebuild_hint(path)) from error
    if not isinstance(document, dict):
        raise UnreadableError(f"{path}: holds no JSON object", next_step=_rebuild_hint(path))
    return document


def _rebuild_hint(path: Path) -> str:
    return f"if the capture died, rebuild it with `python -m speedprof check {path.parent}`"


def _manifest_from(document: Mapping[str, Any]) -> Manifest:
    return _build(
        Manifest,
        document,
        status=RunStatus(document["status"]),
        ranks=[_rank_record_from(rank) for rank in document["ranks"]],
        artifacts=[_build(Artifact, one, kind=ArtifactKind(one["kind"])) for one in document["artifacts"]],
    )


def _rank_record_from(document: Mapping[str, Any]) -> RankRecord:
    return _build(RankRecord, document, status=RunStatus(document["status"]))


# What a reader relies on being a list or an object.
_CONTAINERS = {"plan": dict, "environment": dict, "declared": dict, "num_marked": dict, "command": list, "notes": list}

_Record = TypeVar("_Record", Manifest, RankRecord, Artifact)


def _build(record: type[_Record], document: Mapping[str, Any], /, **converted: Any) -> _Record:
    """A record from JSON. Keys that it does not know are left out, since a version may gain some.

    Raises TypeError where a key is missing or holds another type of container.
    """
    known = {one.name for one in fields(record)}
    kept = {name: value for name, value in document.items() if name in known}
    for name, container in _CONTAINERS.items():
        if not isinstance(kept.get(name, container()), container):
            raise TypeError(f"{name} is no {container.__name__}")
    return record(**{**kept, **converted})
