"""What kind of work a device event is, by its category and, for communication, its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class KernelKind(StrEnum):
    """What device work does. Sets of memory count as compute in a partition, copies do not."""

    COMPUTE = "compute"
    COMMUNICATION = "communication"
    COPY = "copy"
    MEMSET = "memset"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectivePattern:
    """A kernel or host event whose name `regex` matches anywhere is this collective, `other` if it can be any."""

    regex: re.Pattern[str]
    collective: str


def _library(prefix: str, **collectives: str) -> tuple[CollectivePattern, ...]:
    """Patterns of a library whose kernels are named `<prefix>…<collective>…`; what has the prefix alone is other."""
    known = [
        CollectivePattern(regex=re.compile(f"{prefix}.*?(?:{names})"), collective=collective)
        for collective, names in collectives.items()
    ]
    return (*known, CollectivePattern(regex=re.compile(prefix), collective="other"))


# The first match wins. A user's own patterns go in front of these.
COLLECTIVE_PATTERNS: tuple[CollectivePattern, ...] = (
    # ncclKernel_AllReduce_RING_LL_Sum_float up to NCCL 2.18, ncclDevKernel_AllReduce_Sum_f32_RING_LL after it;
    # RCCL keeps the same names, and calls its one kernel for everything ncclDevKernel_Generic.
    *_library(
        r"^(?:void )?(?:nccl|rccl)",
        all_reduce="AllReduce",
        reduce_scatter="ReduceScatter",
        all_gather="AllGather",
        broadcast="Broadcast",
        reduce="Reduce",
        send_recv="SendRecv",
        all_to_all="AllToAll|AlltoAll",
    ),
    # torch's symmetric memory, as plain kernels and as Triton's.
    *_library(
        r"(?:multimem_|symm_mem|symmetric_memory|(?:one|two)_shot_(?=all))",
        all_reduce="all_reduce",
        reduce_scatter="reduce_scatter",
        all_gather="all_gather",
        all_to_all="all_to_all",
    ),
    *_library(
        r"nvshmem",
        all_reduce="allreduce",
        reduce_scatter="reducescatter",
        all_gather="fcollect|allgather",
        broadcast="broadcast",
        all_to_all="alltoall",
        send_recv="put|get",
    ),
    # DeepEP's dispatch and combine kernels live in these C++ namespaces.
    *_library(r"deep_ep::(?:intranode|internode|internode_ll|elastic|hybrid)?", dispatch="dispatch", combine="combine"),
    *_library(r"cross_device_reduce", all_reduce="_[12]stage"),
    *_library(r"(?i:mscclpp?_|msccl_kernel)", all_reduce="(?i:allreduce)", all_gather="(?i:allgather)"),
    *_library(
        r"^gloo:",
        all_reduce="all_?reduce",
        reduce_scatter="reduce_scatter",
        all_gather="all_?gather",
        broadcast="broadcast",
        reduce="reduce",
        all_to_all="all_?to_?all",
        gather="gather",
        scatter="scatter",
        send_recv="send|recv",
        barrier="barrier",
    ),
)

_COPY_CATEGORIES = frozenset({"gpu_memcpy", "Memcpy"})
_MEMSET_CATEGORIES = frozenset({"gpu_memset", "Memset"})


def name_collective(name: str, patterns: Iterable[CollectivePattern] = COLLECTIVE_PATTERNS) -> str | None:
    """The collective that `name` stands for, `other` if it is one that the name does not tell, None if it is none."""
    return next((pattern.collective for pattern in patterns if pattern.regex.search(name)), None)


def classify_kernel(category: str, collective: str | None) -> KernelKind:
    """The kind of a device event of the file's `category` whose name stands for `collective`, if for any.

    A copy made for a collective is a copy: nothing waits inside it for another rank.
    """
    if category in _COPY_CATEGORIES:
        return KernelKind.COPY
    if category in _MEMSET_CATEGORIES:
        return KernelKind.MEMSET
    return KernelKind.COMPUTE if collective is None else KernelKind.COMMUNICATION


def patterns_with(
    own: Sequence[str], patterns: Sequence[CollectivePattern] = COLLECTIVE_PATTERNS
) -> tuple[CollectivePattern, ...]:
    """The patterns with a user's own regular expressions in front; each of those stands for `other`.

    Raises re.error for what is no regular expression.
    """
    return (*(CollectivePattern(regex=re.compile(text), collective="other") for text in own), *patterns)
