"""Where a person may be looking on."""

from __future__ import annotations

import sys


def surface() -> str | None:
    """``"notebook"``, ``"terminal"``, or None where progress would only fill a log."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and type(shell).__name__ == "ZMQInteractiveShell":
        return "notebook"
    return "terminal" if sys.stdout is not None and sys.stdout.isatty() else None
