"""torch.distributed.run, tied to the launcher's life.

    python -m speedprof.capture.elastic [ARGS OF torch.distributed.run...]

A launcher that is killed outright can end nobody. So the kernel is asked to: when the launcher dies it sends SIGTERM to
this process, which then ends its ranks, hanging ones too.
"""

from __future__ import annotations

from speedprof.capture.termination import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    from torch.distributed.run import main

    main()
