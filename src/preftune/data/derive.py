"""Convert all groups of a data set for a loss: in memory, or in the data cache if the groups are in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from preftune.data import cache
from preftune.data.subset import Subset
from preftune.data.token_file import TokenFile, write_tokens
from preftune.types import TokenGroup


def derived(
    groups: Sequence[TokenGroup], name: str, convert: Callable[[Sequence[TokenGroup]], Iterable[TokenGroup]]
) -> Sequence[TokenGroup]:
    """Return `convert(groups)`. For groups in a file, the result is stored in the data cache under `name`."""
    identity = _identity(groups)
    if not identity:
        return list(convert(groups))
    key = cache.key_of("derived", cache.code_version(), name, identity)
    entry, _ = cache.find(key)
    if entry is None:
        with cache.draft() as folder:
            write_tokens(folder, convert(groups))
            entry = cache.publish(folder, key, {})
    return TokenFile(entry.folder, entry.key)


def _identity(groups: Sequence[TokenGroup]) -> str:
    """Return a hash of the content of groups in a file, and "" for groups in memory."""
    if isinstance(groups, TokenFile):
        return groups.key
    if isinstance(groups, Subset) and isinstance(groups.items, TokenFile) and groups.items.key:
        return f"{groups.items.key} {hashlib.sha256(groups.indices.tobytes()).hexdigest()}"
    return ""
