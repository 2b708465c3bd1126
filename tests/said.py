"""What a stage tells the user while it runs, kept."""

from __future__ import annotations

from compress.progress import Progress


class Said(Progress):
    """Keeps the sentences, and shows nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)
