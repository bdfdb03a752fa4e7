"""Does this adapter really beat its base, under the same protocol?"""

from __future__ import annotations

__version__ = "0.1.0"
