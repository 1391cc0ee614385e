"""An index from values to their places in a list: a hash table with open addressing, filled and read column-wise.

It is built once and read for every block. A join or ``replace_strict`` of polars builds its hash table again for each
block, and looks values up in a table of a million in ten times the time.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Index"]

_CHUNK: Final = 1 << 16  # rows whose arrays stay in the cache of a core


class Index:
    """Places of 64-bit keys.

    Args:
        keys: the keys, uint64, shape [keys].

    Raises:
        ValueError: a key occurs twice.

    Example:
        >>> Index(np.array([7, 3], np.uint64)).find(np.array([3, 4, 7], np.uint64)).tolist()
        [2, 0, 1]
    """

    def __init__(self, keys: NDArray[np.uint64], /) -> None:
        bits = max(4, (2 * len(keys)).bit_length())
        self._mask = (1 << bits) - 1
        self._keys = np.zeros(1 << bits, np.uint64)
        self._places = np.zeros(1 << bits, np.int32)  # counted from 1: 0 is an empty slot
        waiting = np.arange(len(keys))
        slots = self._first_slots(keys)
        while len(waiting):
            free = self._places[slots] == 0
            self._places[slots[free]] = waiting[free] + 1  # of several, the last one stays
            placed = self._places[slots] == waiting + 1
            self._keys[slots[placed]] = keys[waiting[placed]]
            if (self._keys[slots[~placed]] == keys[waiting[~placed]]).any():
                raise ValueError("Expected different keys, found the same one twice.")
            waiting, slots = waiting[~placed], (slots[~placed] + 1) & self._mask

    def _first_slots(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        mixed = keys * np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hashing, upper half into the lower
        return (mixed ^ (mixed >> np.uint64(32))).astype(np.int64) & self._mask

    def find(self, keys: NDArray[np.uint64], /) -> NDArray[np.int32]:
        """Return the place of each key, counted from 1; 0 where it is not there."""
        found = np.empty(len(keys), np.int32)
        for start in range(0, len(keys), _CHUNK):
            found[start : start + _CHUNK] = self._find(keys[start : start + _CHUNK])
        return found

    def _find(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        slots = self._first_slots(keys)
        places = self._places.take(slots)
        searching = np.flatnonzero((self._keys.take(slots) != keys) & (places != 0))
        while len(searching):
            slots[searching] = (slots[searching] + 1) & self._mask
            next_slots = slots[searching]
            places[searching] = self._places.take(next_slots)
            other = self._keys.take(next_slots) != keys[searching]
            searching = searching[other & (places[searching] != 0)]
        return places
