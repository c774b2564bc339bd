"""What went wrong while a file was read: sentences for people, and whether what was read can be counted on."""

from __future__ import annotations

from dataclasses import dataclass, field

from speedprof.units import format_bytes

# Where less of the text than this could not be read, it moves no number that a report prints.
_NEGLIGIBLE_RATIO = 0.001


@dataclass(slots=True)
class ReadLog:
    """Filled by the reader as it goes.

    `lost` says why an unknown part of the text is missing or garbled, None where none is. `num_skipped_bytes` of the
    `num_text_bytes` lie between sound events and could not be read; `num_broken_events` counts those, and events that
    are sound JSON but no events.
    """

    notes: list[str] = field(default_factory=list)
    lost: str | None = None
    num_text_bytes: int = 0
    num_skipped_bytes: int = 0
    num_broken_events: int = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def lose(self, text: str) -> None:
        """Note why a part is missing; what follows from a loss that is known already is not told again."""
        if self.lost is None:
            self.lost = text
            self.notes.append(text)

    @property
    def is_damaged(self) -> bool:
        """Whether more than a negligible part could not be read."""
        return self.lost is not None or self.num_skipped_bytes > _NEGLIGIBLE_RATIO * self.num_text_bytes

    def count_broken(self, num_more: int) -> None:
        """Note all broken events, with these that were found broken after they were read."""
        self.num_broken_events += num_more
        if not self.num_broken_events:
            return
        text = f"{self.num_broken_events} damaged events were skipped"
        if self.num_skipped_bytes:
            skipped, whole = format_bytes(self.num_skipped_bytes), format_bytes(self.num_text_bytes)
            text += f": {skipped} of {whole} of text could not be read"
        self.note(text)
