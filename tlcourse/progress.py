"""A progress bar of text.

In a notebook it is one output that is written over and empty in the end: no view that needs a
kernel is saved with the notebook.
"""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> "tqdm[Any]":
    """A bar with the options of `tqdm`."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel") and not options.get("disable"):
        options |= {"file": _Output(), "ncols": 80, "ascii": False}
    return tqdm(**options)


class _Output:
    """An output of a notebook's cell, as the file that a bar is written to."""

    def __init__(self) -> None:
        from IPython.display import display

        self._output = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        """Show this in place of what was shown; the end of the line that a bar leaves is none."""
        if text != "\n":
            self._output.update({"text/plain": text.strip()}, raw=True)

    def flush(self) -> None:
        """Nothing waits."""
