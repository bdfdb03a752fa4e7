"""The modules here import each other as `hostile.…`, as they do when `run.py` is started as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
