"""Names of kernels of many libraries and ages."""

import pytest
from builders import build_trace

from speedprof.trace.kernels import (
    KernelKind,
    choose_patterns,
    classify_kernel,
    name_collective,
    seems_to_communicate,
)


@pytest.mark.parametrize(
    ("name", "collective"),
    [
        ("ncclKernel_AllReduce_RING_LL_Sum_float(ncclDevComm*, unsigned long, ncclWork*)", "all_reduce"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "reduce_scatter"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all_gather"),
        ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)", "send_recv"),
        ("ncclDevKernel_Reduce_Sum_f32_RING_LL()", "reduce"),
        ("void ncclKernel_Broadcast_RING_LL_Sum_int8_t()", "broadcast"),
        ("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", "other"),
        ("rcclGenericKernel<1, false>", "other"),
        ("void deep_ep::intranode::dispatch<8, 768, 8192>()", "dispatch"),
        ("void deep_ep::internode_ll::combine<>()", "combine"),
        ("void two_shot_all_reduce_kernel<c10::BFloat16>", "all_reduce"),
        ("void multimem_all_gather_kernel<16>", "all_gather"),
        ("nvshmemi_alltoall_kernel", "all_to_all"),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>", "all_reduce"),
        ("void aiter::cross_device_reduce_2stage<__hip_bfloat16, 8>", "all_reduce"),
        ("ncclSymDevKernel_AllReduce_RSxLD_AGxST_sum_bf16(ncclSymDevArgs)", "all_reduce"),
        ("void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<1>", "all_reduce"),
        ("void flashinfer::trtllm_mnnvl_allreduce::twoshotAllreduceKernel<(unsigned char)2>", "all_reduce"),
        ("void tensorrt_llm::kernels::twoShotAllReduceKernel<float, 8>", "all_reduce"),
        ("quickreduce::allreduce_prototype_twoshot<AllReduceTwoshot<__half>>", "all_reduce"),
        ("userbuffers_fp16_sum_inplace_gpu_rr_rs(int, int)", "all_reduce"),
        ("userbuffers_pushrecv(int, int)", "send_recv"),
        ("void deep_ep::internode::notify_dispatch<true, 8>()", "dispatch"),
        ("void deep_ep::intranode::cached_notify_combine<8>()", "combine"),
        ("deep_ep::layout::get_dispatch_layout", None),
        ("mscclpp::allreduce7", "all_reduce"),
        ("oneccl_allreduce_pcie", "all_reduce"),
        ("hcom_reduceScatter__428_0_1", "reduce_scatter"),
        ("void mori::moe::EpDispatchIntraNodeKernel<__hip_bfloat16>(mori::moe::EpDispatchCombineArgs<>)", "dispatch"),
        ("EpDispatchInterNodeV1KernelLowLatency_bf16", "dispatch"),
        ("EpCombineIntraNodeKernel_bf16_nop2p", "combine"),
        ("void mori::moe::EpDispatchCombineResetKernel<float>(mori::moe::EpDispatchCombineArgs<float>)", None),
        ("void tensorrt_llm::kernels::moe_comm::moeA2ADispatchKernel<8, false>(int const*)", "dispatch"),
        ("void tensorrt_llm::kernels::moe_comm::moeA2ACombineKernel<__nv_bfloat16, 8>()", "combine"),
        ("tensorrt_llm::kernels::moe_comm::moeA2APrepareDispatchKernel(int*, int*)", None),
        ("void tensorrt_llm::kernels::fused_moe_impl::moeAllToAllKernel<4, false>()", "all_to_all"),
        ("void a2a_dispatch_send_kernel<true, 16, 8>()", "dispatch"),
        ("void a2a_combine_recv_kernel<16, 8>()", "combine"),
        ("c10d::nvshmem_extension::allToAllV_2d(void*, void*, long*, long*)", "all_to_all"),
        (
            "void tensorrt_llm::kernels::reduce_fusion::lamport_style_one_shot_all_reduce_norm_kernel<8, __half>",
            "all_reduce",
        ),
        ("gloo:all_reduce", "all_reduce"),
        ("gloo:send", "send_recv"),
        ("void at::native::reduce_kernel<512, 1>", None),
        ("triton_per_fused_all_reduce_like_0", None),
        ("sm90_xmma_gemm_bf16", None),
        ("", None),
    ],
)
def test_collectives_are_known_by_name(name, collective):
    assert name_collective(name) == collective


@pytest.mark.parametrize(
    ("name", "seems"),
    [
        ("void my::gemm_allreduce_kernel<128>", True),
        ("void (anonymous namespace)::fusedAllGatherGemm<128>(float*)", True),
        ("my_all_to_all::kernel(int)", True),
        ("reduce_scatter_v2", True),
        ("moe_a2a_prepare", True),
        ("void gemm<my::AllReduceEpilogue>(AllReduceParams)", False),
        ("triton_poi_fused__to_copy_all_gather_into_tensor_3", False),
        ("void at::native::reduce_kernel<512, 1>", False),
        ("", False),
    ],
)
def test_a_kernels_own_name_may_seem_to_communicate(name, seems):
    assert seems_to_communicate(name) is seems


def test_a_note_names_the_costliest_kernel_that_may_be_communication_once():
    trace = build_trace("""
        0 | stream 7 | gemm                            |   0 | 900 |
        0 | stream 7 | void my_allreduce<8>(AllReduce) | 900 | 920 |
        0 | stream 7 | gemm_reduce_scatter             | 920 | 950 |
        0 | stream 7 | void my_allreduce<8>(AllReduce) | 950 | 970 |
    """)
    assert trace.notes == (
        "the kernel void my_allreduce<8>(AllReduce) (40 ns in all) is counted as compute, like 1 more of such names: "
        "if it communicates and does nothing else, as its name suggests, --collective-pattern makes it count "
        "as communication",
    )
    assert trace.collectives.is_empty()


def test_no_note_where_all_that_communicates_is_known_or_is_a_copy():
    trace = build_trace("""
        0 | stream 7 | triton_poi_fused_all_gather_into_tensor_0 |  0 | 10 |
        0 | stream 8 | ncclDevKernel_AllReduce_Sum_f32_RING_LL() | 10 | 20 |
    """)
    assert trace.notes == ()


@pytest.mark.parametrize(
    ("category", "collective", "kind"),
    [
        ("kernel", None, KernelKind.COMPUTE),
        ("kernel", "all_gather", KernelKind.COMMUNICATION),
        ("Kernel", "other", KernelKind.COMMUNICATION),
        ("gpu_memcpy", None, KernelKind.COPY),
        ("Memcpy", "other", KernelKind.COPY),
        ("Memset", None, KernelKind.MEMSET),
    ],
)
def test_kinds_follow_category_and_name(category, collective, kind):
    assert classify_kernel(category, collective) is kind


def test_a_users_own_patterns_come_first_and_may_name_the_collective():
    patterns = choose_patterns(["^my_exchange", "all_gather=^my_gather", "x=y"])
    assert name_collective("my_exchange_kernel<3>", patterns) == "other"
    assert name_collective("my_gather_kernel<3>", patterns) == "all_gather"
    assert name_collective("kernel<x=y>", patterns) == "other"  # x is no collective, so that is all regex
    assert name_collective("ncclDevKernel_AllGather_RING_LL()", patterns) == "all_gather"


def test_patterns_in_place_of_the_table_decide_what_counts_but_not_what_it_is_called():
    patterns = choose_patterns(only=["nccl|rccl", "send_recv=mine"])
    assert name_collective("ncclDevKernel_AllGather_RING_LL()", patterns) == "all_gather"
    assert name_collective("my_nccl_kernel", patterns) == "other"
    assert name_collective("mine", patterns) == "send_recv"
    assert name_collective("void deep_ep::intranode::dispatch<8, 768, 8192>()", patterns) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(", "no regular expression .*unterminated"),
        ("all_gather=[", "no regular expression"),
        ("", "matches every name"),
        ("all_gather=", "matches every name"),
        ("a*", "matches every name"),
        ("(" * 5_000 + ")" * 5_000, "no regular expression"),
    ],
)
def test_what_is_no_pattern_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        choose_patterns([text])


def test_no_name_is_long_enough_to_stall_the_table():
    """The time is linear in a name's length. Were it the square, these would take hours."""
    for piece in (
        "nvshmem",
        "deep_ep::",
        "symm_mem",
        "trtllm_",
        "oneShotAll",
        "nccl",
        "gloo:",
        "hcom_",
        "_",
        "msccl_",
        "EpDispatch",
    ):
        assert name_collective(piece * 40_000) in {"other", None}
