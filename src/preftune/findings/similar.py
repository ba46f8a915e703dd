"""Find similar texts in nearly linear time: MinHash proposes candidates, and their texts decide.

The similarity of two texts is the Jaccard index of their sets of shingles (5 successive characters, after
`text.normalised`). Each text has 120 MinHash values in 20 bands of 6; two texts are candidates if they agree in a band
(Broder 1997, "On the resemblance and containment of documents"; the bands as in Leskovec, Rajaraman and Ullman, "Mining
of Massive Datasets", chapter 3). Texts of similarity s are candidates with the probability 1 - (1 - s^6)^20: 0.98 at
0.75, 0.998 at 0.8 and above 0.99999 at 0.9. Each candidate is then compared exactly, so no text is listed whose
similarity is lower. Only hashes are kept in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from preftune.findings.text import normalised

Shingles = npt.NDArray[np.uint64]

SIMILAR = 0.75  # the similarity of near-duplicates
SHINGLE = 5
BANDS, ROWS = 20, 6
PER_BUCKET = 8  # candidates from one bucket; bounds the time for data in which many prompts begin alike
_CHUNK = 4096
_random = np.random.default_rng(20_240_311)
_FACTORS = _random.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_POWERS = _random.integers(1, 2**63, SHINGLE, dtype=np.uint64) | np.uint64(1)


def shingles(text: str) -> Shingles:
    """Return the distinct hashes of the shingles of a text, ascending."""
    codes = np.frombuffer(normalised(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < SHINGLE:
        codes = np.concatenate((codes, np.zeros(SHINGLE - len(codes), dtype=np.uint64)))
    number = len(codes) - SHINGLE + 1
    sums = np.zeros(number, dtype=np.uint64)
    for place in range(SHINGLE):
        sums += codes[place : place + number] * _POWERS[place]
    hashes = np.sort(_mixed(sums))
    return hashes[np.concatenate(([True], hashes[1:] != hashes[:-1]))]


def in_place(sets: Shingles, place: int) -> Shingles:
    """Return other hashes of the same shingles, which are different for each place in a row. Not in order."""
    return _mixed(sets + np.uint64(place)) if place else sets


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a hash of each number: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def similarity(a: Shingles, b: Shingles) -> float:
    """Return the Jaccard index of two sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def text_hash(text: str) -> int:
    """Return a 64-bit hash of a text after normalisation."""
    return exact_hash(normalised(text))


def exact_hash(*texts: str) -> int:
    """Return a 64-bit hash of texts."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest())


class Index:
    """Numbers under the bands of their texts."""

    def __init__(self, per_bucket: int = PER_BUCKET) -> None:
        self._buckets: dict[int, int | list[int]] = {}
        self._per_bucket = per_bucket

    def candidates(self, bands: Sequence[int]) -> list[int]:
        """Return the numbers with a common band, in ascending order."""
        numbers: set[int] = set()
        for band in bands:
            numbers.update(_as_list(self._buckets.get(band)))
        return sorted(numbers)

    def add(self, bands: Sequence[int], number: int) -> None:
        """Add a number under its bands."""
        for band in bands:
            old = self._buckets.get(band)
            if old is None:
                self._buckets[band] = number
            elif len(_as_list(old)) < self._per_bucket:
                self._buckets[band] = [*_as_list(old), number]


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def bands(sets: Shingles) -> list[int]:
    """Return the hash of each band of a set of shingles."""
    least = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(sets), _CHUNK):
        products = sets[start : start + _CHUNK, None] * _FACTORS
        np.minimum(least, (products ^ (products >> np.uint64(32))).min(axis=0), out=least)
    rows = least.reshape(BANDS, ROWS) + np.arange(BANDS, dtype=np.uint64)[:, None]
    total = np.zeros(BANDS, dtype=np.uint64)
    for column in range(ROWS):
        total = _mixed(total * np.uint64(31) + rows[:, column])
    return [int(value) for value in total]
