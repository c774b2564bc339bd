"""What the declared names of collectives and element types stand for, as PyTorch writes them in traces."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

# torch's c10::ScalarType; those with less than a byte an element are left out, since elements are packed then.
BYTES_OF_DTYPE: Mapping[str, int] = {
    "Bool": 1,
    "Byte": 1,
    "Char": 1,
    "Short": 2,
    "Int": 4,
    "Long": 8,
    "UInt16": 2,
    "UInt32": 4,
    "UInt64": 8,
    "Half": 2,
    "BFloat16": 2,
    "Float": 4,
    "Double": 8,
    "ComplexHalf": 4,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "Float8_e4m3fn": 1,
    "Float8_e4m3fnuz": 1,
    "Float8_e5m2": 1,
    "Float8_e5m2fnuz": 1,
    "Float8_e8m0fnu": 1,
}

# By the declared name without underscores: ProcessGroupNCCL's and those of c10d's operators.
_DECLARED: Mapping[str, str] = {
    "allreduce": "all_reduce",
    "allreducecoalesced": "all_reduce",
    "allreducesparse": "all_reduce",
    "allgather": "all_gather",
    "allgatherbase": "all_gather",
    "allgathercoalesced": "all_gather",
    "allgatherintotensorcoalesced": "all_gather",
    "reducescatter": "reduce_scatter",
    "reducescatterbase": "reduce_scatter",
    "reducescattertensorcoalesced": "reduce_scatter",
    "broadcast": "broadcast",
    "broadcastoop": "broadcast",
    "reduce": "reduce",
    "reduceoop": "reduce",
    "alltoall": "all_to_all",
    "alltoallv": "all_to_all",
    "alltoallbase": "all_to_all",
    "gather": "gather",
    "scatter": "scatter",
    "send": "send_recv",
    "recv": "send_recv",
    "barrier": "barrier",
}
# Kernels whose own name does not tell the collective: RCCL has one kernel for everything, and NCCL sends and receives
# what PyTorch calls an all-to-all, a gather or a scatter.
_AMBIGUOUS = ("other", "send_recv")


def collective_name() -> pl.Expr:
    """Which collective a row of the table of collectives is: by its kernel's name if that tells, else as declared."""
    name = pl.col("name").cast(pl.String)
    plain = pl.col("declared_name").cast(pl.String).str.replace_all("_", "", literal=True)
    declared = plain.replace_strict(_DECLARED, default=None, return_dtype=pl.String)
    return pl.when(name.is_in(_AMBIGUOUS)).then(pl.coalesce(declared, name)).otherwise(name)
