"""Join rows that belong together before their format is detected: rated responses, and the messages of trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice

from preftune.formats import ratings, trees
from preftune.formats.account import Account
from preftune.formats.names import ColumnNames
from preftune.formats.parsers import Reading
from preftune.sources.rows import Row


@dataclass(frozen=True, slots=True)
class Joined:
    """The rows of a source, some of which were made from several rows of the file.

    origin_of   {column that was made: the column of the file that it was made from}
    statuses    statuses of columns of the file that the rows do not have, when all rows have been read
    by_aspect   whether data.aspect was used
    """

    rows: Iterator[Row]
    origin_of: Mapping[str, str] = field(default_factory=dict)
    statuses: Mapping[str, str] = field(default_factory=dict)
    by_aspect: bool = False


def joined(rows: Iterator[Row], names: ColumnNames, reading: Reading, account: Account, head_rows: int) -> Joined:
    """Join the rows if the first `head_rows` of them are ratings or messages of trees.

    Raises DataError for ratings without data.aspect.
    """
    head = list(islice(rows, head_rows))
    readable = names.readable(head)
    all_rows = chain(head, rows)
    if reading.format == "auto" and trees.are_messages(readable):
        statuses: dict[str, str] = {}
        return Joined(trees.compared(all_rows, account, statuses), trees.ORIGINS, statuses)
    ratings.require_aspect(readable, reading.aspect, account.source)
    aspect = names.new_name.get(reading.aspect, reading.aspect)
    if not ratings.are_ratings(readable, aspect):
        return Joined(all_rows)
    adjacent = all(ratings.flat(row) is row for row in readable)
    joiner = ratings.Joiner(aspect, names, account, adjacent)
    return Joined(joiner.rows(all_rows), joiner.origin_of, by_aspect=True)
