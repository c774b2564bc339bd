from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speedprof.analyses.idle_gaps import GapCause
from speedprof.findings import Slug
from speedprof.report.names import CAUSE_LABELS, CAUSE_MEANINGS, shorten, shorten_kernel, shorten_range
from speedprof.report.sections import SECTIONS_OF, Section, is_of
from speedprof.report.text import make_plain


@pytest.mark.parametrize(
    ("name", "telling"),
    [
        ("gemm", "gemm"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "ncclDevKernel_AllGather_RING_LL"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, "
            "std::array<char*, 1ul> >(int, at::native::FillFunctor<float>, std::array<char*, 1ul>)",
            "vectorized_elementwise_kernel<4, FillFunctor<float>, array…",
        ),
        (
            "void (anonymous namespace)::elementwise_kernel_with_index<int, "
            "at::native::arange_cuda_out(at::Scalar const&)::{lambda()#1}>(int)",
            "elementwise_kernel_with_index<int, arange_cuda_out(Scalar c…",
        ),
        (
            "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::Main> > >(Params)",
            "device_kernel<enable_sm90_or_later<FlashAttnFwdSm90<Main> >…",
        ),
        (
            "triton_red_fused__to_copy__unsafe_view_add_cat_mul_native_layer_norm_sigmoid_split_23",
            "triton_red_fused__to_copy__unsafe_view_add_c…igmoid_split_23",
        ),
        ("(weird)", "(weird)"),
        ("void ", "void "),
        ("operator<(int)", "operator<(int)"),
    ],
)
def test_kernels_keep_the_telling_part_of_their_name(name: str, telling: str) -> None:
    assert shorten_kernel(name) == telling


@given(st.text() | st.text(alphabet="<>(): ,aA1uvoid*&"), st.integers(8, 80))
@example("a::" * 4_000, 60)
@example("a" * 100_000, 60)
@example("<" * 10_000, 60)
def test_no_kernel_name_is_too_long_or_lost(name: str, limit: int) -> None:
    short = shorten_kernel(name, limit)
    assert len(short) <= limit
    assert bool(short) == bool(name)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("speedprof.stage/update/adam.scalars", "update of adam.scalars"),
        ("speedprof.stage/update", "update"),
        ("speedprof.step/12", "step 12"),
        ("speedprof.range/eval", "eval"),
        ("## Call CompiledFxGraph fksa2i3as2a5crxxjx5kk34qby5osmg ##", "compiled graphs"),
        ("Optimizer.step#AdamW.step", "Optimizer.step#AdamW.step"),
    ],
)
def test_ranges_are_named_as_a_reader_knows_them(name: str, short: str) -> None:
    assert shorten_range(name) == short


def test_a_shortened_name_keeps_its_beginning_and_a_little_of_its_end() -> None:
    assert shorten("a" * 30 + "b" * 30, 20) == "a" * 14 + "…" + "b" * 5
    assert shorten("a" * 20, 20) == "a" * 20


def test_every_cause_has_words() -> None:
    assert set(CAUSE_LABELS) == set(CAUSE_MEANINGS) == set(GapCause)
    assert len(set(CAUSE_LABELS.values())) == len(GapCause)


@pytest.mark.parametrize("slug", list(Slug))
def test_each_finding_belongs_to_a_section(slug: Slug) -> None:
    assert SECTIONS_OF[slug]


def test_a_finding_is_of_the_sections_that_it_belongs_to() -> None:
    assert is_of(Slug.IDLE_LATE_LAUNCH, frozenset({Section.LAUNCHES}))
    assert not is_of(Slug.IDLE_SYNC, frozenset({Section.LAUNCHES}))
    assert is_of("a-new-one", frozenset({Section.LAUNCHES}))


@given(st.text(max_size=40))
def test_only_what_shows_is_left_in_plain_text(text: str) -> None:
    assert not [
        one for one in make_plain(text) if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    ]
    if re.fullmatch(r"[ -~]*", text):
        assert make_plain(text) == text
