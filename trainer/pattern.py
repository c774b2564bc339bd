"""Which layer has what: the pattern of the 12 nominal layers, the same in all three records.

Layer 0 is null, layer 7 has no attention; the layers that train are numbered 1 to 11.
"""

from __future__ import annotations

NUM_LAYERS = 12
LAST_LAYER = NUM_LAYERS - 1
MLP_LAYERS = tuple(range(1, NUM_LAYERS))
ATTENTION_LAYERS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)
LONG_WINDOW_LAYERS = (4, 11)  # the others see half as far
VALUE_TABLE_OF_LAYER = {1: 1, 2: 2, 9: 0, 10: 1, 11: 2}
NUM_VALUE_TABLES = 3
