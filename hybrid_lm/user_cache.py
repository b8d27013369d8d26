"""Where things are kept that can always be made again, for all runs of a user."""

import os
from pathlib import Path


def directory(name: str) -> Path:
    """``XDG_CACHE_HOME/hybrid_lm/name``; it may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "hybrid_lm", name)
