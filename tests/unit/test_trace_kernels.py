"""Names of kernels of many libraries and ages."""

import pytest

from speedprof.trace.kernels import KernelKind, classify_kernel, name_collective, patterns_with


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


def test_a_users_own_patterns_come_first():
    patterns = patterns_with(["^my_exchange"])
    assert name_collective("my_exchange_kernel<3>", patterns) == "other"
    assert name_collective("ncclDevKernel_AllGather_RING_LL()", patterns) == "all_gather"
