"""A table as text: what every report prints, each in its own form."""

from __future__ import annotations

from dataclasses import dataclass, replace

ABSENT = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """Rows of cells, as many as `columns`. The first `num_labels` columns hold words, the others numbers.

    The unit of the numbers is in the title, or in the name of the column where it differs. `weights` say how much each
    row matters where they are given; else the rows are in that order.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_labels: int
    remark: str = ""
    weights: tuple[float, ...] = ()

    def shortened(self, limit: int) -> TextTable:
        """The `limit` rows that matter most, in their order; a remark says how many are left out.

        Columns of words that none of these rows has any in are left out too, but for the first.
        """
        num_left_out = len(self.rows) - limit
        if num_left_out <= 0:
            return self._without_empty_labels()
        order = list(range(len(self.rows)))
        if self.weights:
            order.sort(key=lambda row: -self.weights[row])
        kept = sorted(order[:limit])
        said = f"{num_left_out:,} smaller {'row' if num_left_out == 1 else 'rows'} left out."
        shorter = replace(
            self,
            rows=tuple(self.rows[row] for row in kept),
            weights=tuple(self.weights[row] for row in kept) if self.weights else (),
            remark=f"{said} {self.remark}".strip(),
        )
        return shorter._without_empty_labels()

    def _without_empty_labels(self) -> TextTable:
        kept = [
            column
            for column in range(len(self.columns))
            if not 0 < column < self.num_labels or any(row[column] not in ("", ABSENT) for row in self.rows)
        ]
        return replace(
            self,
            columns=tuple(self.columns[column] for column in kept),
            rows=tuple(tuple(row[column] for column in kept) for row in self.rows),
            num_labels=sum(column < self.num_labels for column in kept),
        )
