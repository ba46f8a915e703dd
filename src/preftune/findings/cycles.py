"""Contradictions and cycles of judgements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def inconsistent(better: Sequence[int], worse: Sequence[int]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which judgements contradict another one, and which others lie on a cycle.

    Judgement i prefers the response with the hash `better[i]` to the one with the hash `worse[i]`. A hash must be
    that of a prompt and a response. A judgement contradicts another one if that one prefers the same two responses the
    other way. It lies on a cycle if other judgements lead from its worse response back to its better one (A > B, B > C,
    C > A). The time is n log n.
    """
    _, ids = np.unique(np.array([better, worse], dtype=np.uint64), return_inverse=True)
    winner, loser = ids.reshape(2, -1).astype(np.int64)
    size = int(ids.max(initial=0)) + 1
    opposed = np.isin(winner * size + loser, loser * size + winner) & (winner != loser)
    component = _components(winner, loser, size)
    return opposed, (component[winner] == component[loser]) & ~opposed & (winner != loser)


def _components(winner: Numbers, loser: Numbers, size: int) -> Numbers:
    """Return the strongly connected component of each node (Tarjan 1972), without recursion."""
    order = np.argsort(winner, kind="stable")
    targets = loser[order].tolist()
    starts = np.searchsorted(winner[order], np.arange(size + 1)).tolist()
    component, low, index = [-1] * size, [0] * size, [-1] * size
    stack: list[int] = []
    count = 0
    for root in range(size):
        if index[root] >= 0:
            continue
        index[root] = low[root] = count
        count += 1
        stack.append(root)
        path = [(root, starts[root])]
        while path:
            node, at = path.pop()
            if at < starts[node + 1]:
                path.append((node, at + 1))
                target = targets[at]
                if index[target] < 0:
                    index[target] = low[target] = count
                    count += 1
                    stack.append(target)
                    path.append((target, starts[target]))
                elif component[target] < 0:
                    low[node] = min(low[node], index[target])
                continue
            if low[node] == index[node]:
                while component[node] < 0:
                    component[stack.pop()] = node
            if path:
                parent = path[-1][0]
                low[parent] = min(low[parent], low[node])
    return np.array(component, dtype=np.int64)
