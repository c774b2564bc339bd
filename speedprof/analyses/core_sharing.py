"""Do the CPU ranks of a run have a core for each of their threads?"""

from __future__ import annotations

from speedprof.run_dir import Manifest


def is_sharing_cores(manifest: Manifest) -> bool | None:
    """Whether ranks times threads exceed the cores that the run could use; None where the run did not record it."""
    num_cores = manifest.environment.get("num_cores")
    num_ranks = len(manifest.ranks)
    if not isinstance(num_cores, int) or not num_ranks:
        return None
    # The launcher gives each rank its share of the cores where the user has not set the number of threads.
    set_threads = str((manifest.environment.get("variables") or {}).get("OMP_NUM_THREADS", ""))
    num_threads = int(set_threads) if set_threads.isdigit() else max(1, num_cores // num_ranks)
    return num_ranks * num_threads > num_cores
