"""The names of annotations, for those that make them and those that find them in a trace. Imports no torch.

speedprof.step/<n>      speedprof.stage/<stage>/<optimizer>.<group>      speedprof.range/<name>

A step that is a validation pass is named speedprof.step/<n>/validation.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

# One optimizer update, or one pass over validation data.
StepKind = Literal["train", "validation"]

STEP_PREFIX = "speedprof.step/"
VALIDATION_SUFFIX = "/validation"
STAGE_PREFIX = "speedprof.stage/"
RANGE_PREFIX = "speedprof.range/"


class Stage(StrEnum):
    """The stages of a sharded optimizer, in the order in which a group passes through them."""

    REDUCE_SCATTER = "reduce_scatter"
    REDUCE_SCATTER_WAIT = "reduce_scatter_wait"
    NEWTON_SCHULZ = "newton_schulz"
    UPDATE = "update"
    ALL_GATHER = "all_gather"
    ALL_GATHER_WAIT = "all_gather_wait"
    COPY_BACK = "copy_back"
