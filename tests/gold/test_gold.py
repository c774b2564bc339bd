"""Every kept capture still gives the kept reports, byte for byte; what differs is saved under tests/actual."""

from __future__ import annotations

import shutil

import pytest

from speedprof.run_dir import RunStatus, find_damage, read_manifest
from tests.gold.samples import REPORTS, ROOT, SAMPLES, Sample, write_gold

MOST_BYTES = 4_000_000

samples = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@samples
def test_reports_of_a_kept_capture_do_not_change_unseen(sample: Sample) -> None:
    actual, expected = ROOT / "tests" / "actual" / sample.name, REPORTS / sample.name
    shutil.rmtree(actual, ignore_errors=True)
    write_gold(sample, actual)
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in actual.iterdir()) == names
    changed = [name for name in names if (actual / name).read_bytes() != (expected / name).read_bytes()]
    assert not changed, f"compare {actual} with {expected}; if the change is meant, accept it with `make gold`"
    shutil.rmtree(actual)


@samples
def test_a_kept_capture_is_whole_and_small(sample: Sample) -> None:
    manifest = read_manifest(sample.run_dir)
    assert manifest.status is RunStatus.COMPLETE
    assert find_damage(sample.run_dir, manifest) == []
    assert sum(artifact.num_bytes for artifact in manifest.artifacts) < MOST_BYTES
