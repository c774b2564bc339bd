"""The environment record: what changes how torch runs, and no secret."""

import json
import subprocess
from pathlib import Path

import pytest

from speedprof.capture.environment import hide_credentials, read_environment, read_git

_SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-1",
    "HF_TOKEN": "planted-2",
    "WANDB_API_KEY": "planted-3",
    "TORCH": "planted-4",
    "MY_NCCL_DEBUG": "planted-5",
    "nccl_debug": "planted-6",
    "OMP_NUM_THREADS_TOKEN": "planted-7",
    "PATH_TO_KEY": "planted-8",
}


def test_only_variables_that_change_how_torch_runs_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "1", "TORCH_LOGS": "recompiles", "CUDA_VISIBLE_DEVICES": ""}
    for name, value in (_SECRETS | kept).items():
        monkeypatch.setenv(name, value)
    record = read_environment(tmp_path)
    assert record["variables"].items() >= kept.items()
    assert "planted" not in json.dumps(record)


def test_a_kept_variable_loses_the_password_of_its_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_REMOTE", "redis://user:planted@cache.invalid:6379/0")
    assert read_environment(tmp_path)["variables"]["TORCHINDUCTOR_REMOTE"] == "redis://cache.invalid:6379/0"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("https://user:pass@host.invalid/a", "https://host.invalid/a"),
        ("--data=s3://key@bucket/x and https://a:b@c.invalid", "--data=s3://bucket/x and https://c.invalid"),
        ("https://host.invalid/a@b", "https://host.invalid/a@b"),
        ("someone@host.invalid", "someone@host.invalid"),
    ],
)
def test_credentials_of_addresses_are_left_out(text: str, without: str) -> None:
    assert hide_credentials(text) == without


def test_the_record_is_json_and_names_the_versions_that_matter(tmp_path: Path) -> None:
    record = json.loads(json.dumps(read_environment(tmp_path)))
    assert record["packages"]["torch"].startswith("2.")
    assert record["num_cores"] >= 1
    assert record["memory_bytes"] > 0


def test_git_outside_a_checkout_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_git(tmp_path) == {"commit": None, "branch": None, "dirty": None, "diff_sha256": None}


def test_git_says_commit_and_branch_and_tells_one_uncommitted_change_from_another(tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet", "--initial-branch=main")
    file = tmp_path / "file"
    file.write_text("a\n")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "-c", "user.name=A", "-c", "user.email=a@example.invalid", "commit", "--quiet", "-m", "one")
    clean = read_git(tmp_path)
    assert (clean["branch"], clean["dirty"], clean["diff_sha256"]) == ("main", False, None)
    assert len(str(clean["commit"])) == 40
    file.write_text("b\n")
    changed = read_git(tmp_path)
    file.write_text("c\n")
    otherwise_changed = read_git(tmp_path)
    assert changed["dirty"]
    assert changed["diff_sha256"] != otherwise_changed["diff_sha256"]


def _git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True)
