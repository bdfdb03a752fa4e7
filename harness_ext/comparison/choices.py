"""What flags of `harness-ext compare` may be; apart, so that `--help` needs no numerical libraries."""

from __future__ import annotations

from typing import Literal, get_args

Order = Literal["name", "rank", "difference", "score"]
ORDERS: tuple[str, ...] = get_args(Order)
Bar = Literal["worse", "undecided", "not-better"]
BARS: tuple[str, ...] = get_args(Bar)
View = Literal["auto", "rows", "board"]
VIEWS: tuple[str, ...] = get_args(View)
