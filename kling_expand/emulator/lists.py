"""Which tasks are on a page? Nobody promises order or completeness, so both can be spoilt."""

import re
from collections.abc import Mapping
from typing import Self

from attrs import frozen

from kling_expand.emulator.codes import Refusal


@frozen
class Page:
    """`number` counts from 1 to 1000, `size` is 1 to 500."""

    number: int
    size: int

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """From `pageNum` (1 by default) and `pageSize` (30); raises Refusal 1201."""
        return cls(
            _whole(query, "pageNum", default=1, most=1000), _whole(query, "pageSize", default=30, most=500)
        )

    @property
    def span(self) -> slice:
        """The positions it shows."""
        return slice((self.number - 1) * self.size, self.number * self.size)


def _whole(query: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise Refusal(1201, f"{name} must be an integer between 1 and {most}")
    return int(text)
