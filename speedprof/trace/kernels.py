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
    """A kernel or host event whose name `regex` matches anywhere is this collective, `other` if it can be any.

    With `collective` None it is the one that COLLECTIVE_PATTERNS know the name as, `other` if they do not know it.
    """

    regex: re.Pattern[str]
    collective: str | None


def _library(prefix: str, **collectives: str) -> tuple[CollectivePattern, ...]:
    """Patterns of a library whose kernels are named `<prefix>…<collective>…`; what has the prefix alone is other."""
    # Looking on from the first prefix alone keeps the time linear in a name's length, whatever the name.
    known = [
        CollectivePattern(regex=re.compile(rf"\A(?>.*?{prefix}).*?(?:{names})"), collective=collective)
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
        # torch's `all_to_all_vdev` runs c10d::nvshmem_extension::allToAllV.
        all_to_all="(?i:alltoall)",
        send_recv="put|get",
    ),
    # DeepEP's dispatch and combine kernels live in C++ namespaces of this one; those of `layout` only count tokens.
    *_library(r"deep_ep::(?!layout::)", dispatch="dispatch", combine="combine"),
    # What exchanges the tokens of experts in AMD's MORI, in TensorRT-LLM and FlashInfer, and in pplx-garden. What
    # resets or prepares there waits for nobody, and is compute.
    CollectivePattern(
        regex=re.compile(
            r"\bEpDispatch(?!Combine)\w{0,64}Kernel|moeA2ADispatchKernel|a2a_dispatch_(?:send|recv)_kernel"
        ),
        collective="dispatch",
    ),
    CollectivePattern(
        regex=re.compile(r"\bEpCombine\w{0,64}Kernel|moeA2ACombineKernel|a2a_combine_(?:send|recv)_kernel"),
        collective="combine",
    ),
    CollectivePattern(regex=re.compile("moeAllToAllKernel"), collective="all_to_all"),
    # The all-reduces of vLLM and SGLang, of TensorRT-LLM and FlashInfer, and of AMD's quick reduce.
    *_library(r"cross_device_reduce", all_reduce="_[12]stage"),
    CollectivePattern(
        regex=re.compile(
            r"trtllm_(?:\w{1,8}_)?allreduce|allreduce_fusion_kernel|(?:one|two)[sS]hotAll[rR]educe|"
            r"quickreduce::|allreduce_prototype_"
        ),
        collective="all_reduce",
    ),
    # Transformer Engine's, which overlap with matrix products, named by what they do in their own way.
    *_library(r"userbuffers_", all_reduce="sum_inplace_gpu", send_recv="push|pull"),
    *_library(r"(?i:mscclpp?_|mscclpp::|msccl_kernel)", all_reduce="(?i:allreduce)", all_gather="(?i:allgather)"),
    # oneCCL's on Intel, HCCL's on Ascend.
    *_library(
        r"^(?:oneccl_|hcom_)",
        all_reduce="(?i:allreduce)",
        reduce_scatter="(?i:reduce_?scatter)",
        all_gather="(?i:allgather)",
        all_to_all="(?i:alltoall)",
        broadcast="(?i:broadcast)",
        send_recv="(?i:send|recv|receive)",
    ),
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

# The names of collectives, as tables and reports write them.
COLLECTIVES = tuple(dict.fromkeys(one.collective for one in COLLECTIVE_PATTERNS if one.collective))

# What kernels that communicate are called, whoever wrote them.
_COMMUNICATES = re.compile(r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|a2a", re.IGNORECASE)
# Inductor names a kernel for the operators that it computes with, and what it reads may come from a collective.
_BY_INDUCTOR = re.compile(r"\Atriton_[a-z]{3}_fused_")

_COPY_CATEGORIES = frozenset({"gpu_memcpy", "Memcpy"})
_MEMSET_CATEGORIES = frozenset({"gpu_memset", "Memset"})


_MOST_SEARCHED = 1_000


def name_collective(name: str, patterns: Iterable[CollectivePattern] = COLLECTIVE_PATTERNS) -> str | None:
    """The collective that `name` stands for, `other` if it is one that the name does not tell, None if it is none.

    A library's mark stands at the head of a name: what follows the first thousand characters is not searched.
    """
    name = name[:_MOST_SEARCHED]
    for pattern in patterns:
        if pattern.regex.search(name):
            return pattern.collective or name_collective(name) or "other"
    return None


def seems_to_communicate(name: str) -> bool:
    """Whether a kernel's own name, without its template's and its call's arguments, is that of a collective."""
    function = re.split(r"[<(]", name.replace("(anonymous namespace)", ""), maxsplit=1)[0]
    return _COMMUNICATES.search(function) is not None and _BY_INDUCTOR.match(function) is None


def classify_kernel(category: str, collective: str | None) -> KernelKind:
    """The kind of a device event of the file's `category` whose name stands for `collective`, if for any.

    A copy made for a collective is a copy: nothing waits inside it for another rank.
    """
    if category in _COPY_CATEGORIES:
        return KernelKind.COPY
    if category in _MEMSET_CATEGORIES:
        return KernelKind.MEMSET
    return KernelKind.COMPUTE if collective is None else KernelKind.COMMUNICATION


def parse_pattern(text: str) -> CollectivePattern:
    """A user's own pattern, `REGEX` or `NAME=REGEX` with the name of a collective, such as `all_gather=my_kernel`.

    Raises ValueError, with the reason, for what is no regular expression, and for one that every name matches.
    """
    name, _, rest = text.partition("=")
    if text.startswith("="):
        raise ValueError("names no collective before its =")
    is_named = name in COLLECTIVES and "=" in text
    regex = rest if is_named else text
    try:
        compiled = re.compile(regex)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression ({error})") from None
    if compiled.search(""):
        raise ValueError("matches every name")
    return CollectivePattern(regex=compiled, collective=name if is_named else None)


def choose_patterns(own: Sequence[str] = (), only: Sequence[str] = ()) -> tuple[CollectivePattern, ...]:
    """What decides which kernels are communication: a user's `own` patterns, then the table, or `only` instead of it.

    Raises ValueError as parse_pattern does.
    """
    table = tuple(map(parse_pattern, only)) if only else COLLECTIVE_PATTERNS
    return (*map(parse_pattern, own), *table)
