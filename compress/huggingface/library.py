"""The transformers library: imported when a folder is read, and kept from printing and from the network."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from compress.errors import CompressError

LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""What every reader of the library is told: nothing is fetched, and code that lies in a folder is not run."""


def library() -> Any:
    """The module ``transformers``.

    Raises:
        CompressError: if it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise CompressError(
            f'reading a Hugging Face folder needs transformers ({error}): pip install "compress-edge[hf]"'
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars and warnings: what matters of them is raised here."""
    logging = library().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What the library said, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
