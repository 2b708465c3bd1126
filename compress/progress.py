"""What a user sees while a stage runs: one line a stage on stderr, with a bar and the time left where it takes long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

REFRESHES = 2.0  # a second: rich's ten took 3.5 % of a core, which a bench on the same machine calls foreign load


class Progress:
    """``stage`` frames one stage, ``step`` moves its bar, ``say`` prints a sentence. All of it goes to stderr.

    The bar is there while a stage runs; on anything but a terminal only the finished stages are printed.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console: Any = None
        self._bar: Any = None
        self._task: Any = None

    @contextlib.contextmanager
    def stage(self, name: str, detail: str | None = None) -> Iterator[None]:
        """Show that stage ``name`` runs; nested stages are shown as one."""
        if self.quiet or self._bar is not None:
            yield
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        title = f"{name} ({detail})" if detail else name
        console = self._stderr()
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
        )  # fmt: skip
        started = time.monotonic()
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal, refresh_per_second=REFRESHES
        ) as bar:
            self._bar, self._task = bar, bar.add_task(title, total=None, text="")
            try:
                yield
            finally:
                self._bar = self._task = None
        seconds = time.monotonic() - started
        console.print(f"[green]done[/] {title} [dim]{seconds:.1f} s[/]", highlight=False, soft_wrap=True)

    def step(self, done: int, total: int, text: str = "") -> None:
        """Move the bar of the stage that runs."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, text=text)

    def say(self, sentence: str) -> None:
        if not self.quiet:
            self._stderr().print(sentence, markup=False, highlight=False, soft_wrap=True)

    def _stderr(self) -> Any:
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True)
        return self._console
