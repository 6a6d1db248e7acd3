"""`LiveTable`: a table of the runs of a study that is kept up to date while they run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hf_segkd.evaluation.reports import table


class LiveTable:
    """The state of each run, methods below each other and seeds side by side.

    On a terminal it is drawn again in its place; elsewhere, as in a log file, it is printed when a run is done.

    Args:
        rows: Title of each row, and the names of its runs.
        columns: Titles of the columns.
    """

    def __init__(self, rows: Sequence[tuple[str, Sequence[str]]], columns: Sequence[str]) -> None:
        self.rows = rows
        self.columns = columns
        self.states: dict[str, str] = {}
        self._lines_drawn = 0

    def show(self, name: str, state: str) -> None:
        """Note the state of a run, a score if it is done, and show the table."""
        changed = self.states.get(name) != state
        self.states[name] = state
        if sys.stdout.isatty():
            text = self.text()
            up = f"\x1b[{self._lines_drawn}F\x1b[J" if self._lines_drawn else ""
            print(f"{up}{text}", flush=True)
            self._lines_drawn = text.count("\n") + 1
        elif changed and state.replace(".", "").isdecimal():
            print(f"\n{self.text()}", flush=True)

    def leave(self) -> None:
        """Let the table stand as it is, since other lines follow; the next one is drawn below these."""
        self._lines_drawn = 0

    def text(self) -> str:
        """The table in Markdown; a run that waits is a dash."""
        cells = [[title, *(self.states.get(name, "-") for name in names)] for title, names in self.rows]
        width = max(len(row) for row in cells)
        return table(["mIoU %", *self.columns][:width], [row + [""] * (width - len(row)) for row in cells])
