"""Templates that show every text from outside as text: escaped for HTML, with control characters made visible."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from harness_ext.names import visible


def _inert(value: Any) -> Any:
    """A text without characters that act; markup that a template made itself stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _percent(share: float) -> str:
    """A share of the width as a coordinate."""
    return f"{100 * share:.2f}%"


@cache
def environment() -> jinja2.Environment:
    """The environment of all templates in this package."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("harness_ext.render", ""),
        autoescape=True,
        finalize=_inert,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = _percent
    return made
