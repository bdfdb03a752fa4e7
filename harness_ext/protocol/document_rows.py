"""Documents that are read many at a time: lm-eval lists whole splits, and datasets decodes rows one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets

AT_ONCE = 1000  # rows


class DocumentRows(datasets.Dataset):
    """A split that is read in batches when it is iterated; the rows are those of `Dataset`."""

    @classmethod
    def of(cls, rows: datasets.Dataset) -> DocumentRows:
        """The rows of a data set, without copying them."""
        return cls(
            rows.data, info=rows.info, split=rows.split, indices_table=rows._indices, fingerprint=rows._fingerprint
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows in order, as dictionaries by column; in another format if one was set."""
        if self.format["type"] is not None:
            yield from super().__iter__()
            return
        for batch in self.iter(AT_ONCE):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))
