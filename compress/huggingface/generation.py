"""``generation_config.json`` as the decoder loop of a chain: its first tokens, its last, and those never picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.errors import CompressError
from compress.huggingface.folder import Folder
from compress.huggingface.library import LOCAL, first_line, library

FILE = "generation_config.json"
UNSET_STEPS = 20            # of the library, where neither max_length nor max_new_tokens is set
NOT_GREEDY: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0), "encoder_repetition_penalty": (None, 1.0), "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0), "bad_words_ids": (None,), "sequence_bias": (None,),
    "guidance_scale": (None, 1.0), "exponential_decay_length_penalty": (None,), "stop_strings": (None,),
    "force_words_ids": (None,), "constraints": (None,), "watermarking_config": (None,),
}  # fmt: skip
"""Settings under which the library picks another token than the likeliest, and the values that do nothing."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Greedy search of a folder. ``start`` is empty where the caller gives the prompt."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    pad: int
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    min_steps: int = 0
    max_steps: int

    def loop(self, *, token: str, logits: str, state: Mapping[str, str], mask: str | None = None) -> dict[str, Any]:
        """The key ``loop`` of a step of a chain (:mod:`runtimes.wiring`).

        Args:
            token: the graph's input of token ids.
            logits: its output that scores them.
            state: each input of its cache, empty at first, and the output it is taken from.
            mask: its attention mask's input, where it has one.
        """
        record: dict[str, Any] = {
            "token": token, "logits": logits, "pick": "argmax", "max_steps": self.max_steps,
            "state": {name: {"from": present, "initial": 0} for name, present in state.items()},
            "start": list(self.start), "stop": list(self.stop), "pad": self.pad,
        }  # fmt: skip
        if mask is not None:
            record["mask"] = mask
        for key, ids in (("suppress", self.suppress), ("suppress_first", self.suppress_first)):
            if ids:
                record[key] = list(ids)
        if self.min_steps:
            record["min_steps"] = self.min_steps
        return record


def read_config(folder: Folder) -> Any:
    """The library's ``GenerationConfig``: of its file, or where there is none, of ``config.json``.

    Raises:
        CompressError: if it is damaged, or asks for what greedy search does not do; names the setting.
    """
    has_own = (folder.path / FILE).is_file()
    source: dict[str, Any] = {} if has_own else {"config_file_name": "config.json", "_from_model_config": True}
    try:
        config = library().GenerationConfig.from_pretrained(str(folder.path), **source, **LOCAL)
    except Exception as error:  # the library checks values with exceptions of many kinds
        raise CompressError(f"{folder.path / FILE} cannot be read: {first_line(error)}") from error
    where = folder.path / (FILE if has_own else "config.json")
    for name, harmless in NOT_GREEDY.items():
        value = getattr(config, name, None)
        if value not in harmless:
            raise CompressError(
                f"{where} sets {name} to {value!r:.80}, which greedy search does not do: remove it there, and see on "
                "your data whether answers stay as good"
            )
    return config


def read_generation(
    folder: Folder, *, vocabulary: int, positions: int, start: Sequence[int] | None = None, prompt: int = 0,
    beyond_start: bool = False,
) -> Generation:  # fmt: skip
    """Greedy search as the folder's ``generation_config.json`` describes it.

    Beams and sampling there are read as greedy search. A ``forced_bos_token_id`` is a second start token; a
    ``forced_eos_token_id``, which the library puts in the last place there is room for, is left out with that place.

    Args:
        vocabulary: how many tokens the network scores.
        positions: how many tokens it can be given.
        start: the tokens it begins with; by default ``decoder_start_token_id``, or ``bos_token_id``.
        prompt: the most tokens that the caller gives in place of start tokens.
        beyond_start: whether ``max_length`` leaves out the start tokens, as it always does a prompt.

    Raises:
        CompressError: as :func:`read_config`, or if a token is beyond the vocabulary, there is no start token, or no
            room for a token.
    """
    config = read_config(folder)
    first = () if prompt else _start(folder, config) if start is None else tuple(start)
    stop = _ids(config.eos_token_id)
    given = len(first) or prompt
    longest = given + config.max_new_tokens if config.max_new_tokens is not None else config.max_length
    if longest is None:
        longest = given + UNSET_STEPS
    elif (prompt or beyond_start) and config.max_new_tokens is None:
        longest += given
    if config.forced_eos_token_id is not None:
        longest -= 1
    if config.forced_bos_token_id is not None and len(first) == 1:
        first = (*first, int(config.forced_bos_token_id))
        given = 2
    least = config.min_new_tokens if config.min_new_tokens is not None else (config.min_length or 0) - len(first)
    most = min(longest, positions) - given
    found = Generation(
        start=first, stop=stop, pad=_pad(config, stop), suppress=_ids(config.suppress_tokens),
        suppress_first=_ids(config.begin_suppress_tokens), min_steps=max(0, min(least, most)), max_steps=most,
    )  # fmt: skip
    _check(folder, found, vocabulary)
    return found


def _start(folder: Folder, config: Any) -> tuple[int, ...]:
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
    if start is None:
        raise CompressError(f"{folder.path} has no decoder_start_token_id: set it in {FILE}")
    return _ids(start)


def _pad(config: Any, stop: tuple[int, ...]) -> int:
    return int(config.pad_token_id) if config.pad_token_id is not None else (*stop, 0)[0]


def _ids(value: Any) -> tuple[int, ...]:
    """One id, several, or none."""
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, list | tuple) else (int(value),)


def _check(folder: Folder, found: Generation, vocabulary: int) -> None:
    for key in ("start", "stop", "suppress", "suppress_first"):
        for token in getattr(found, key):
            if not 0 <= token < vocabulary:
                raise CompressError(
                    f"{folder.path / FILE}: {key} has the token {token}, but the network scores {vocabulary} "
                    "(vocab_size): it is of another model"
                )
    if not 0 <= found.pad < vocabulary:
        raise CompressError(
            f"{folder.path / FILE}: pad_token_id is {found.pad}, but the network scores {vocabulary} (vocab_size)"
        )
    if found.max_steps < 1:
        raise CompressError(
            f"{folder.path / FILE} leaves no room for a token: max_length or the network's positions are used up by "
            f"{'the start tokens' if found.start else 'the longest prompt'}"
        )
