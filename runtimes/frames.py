"""The frames that a host and a device exchange over a byte stream: a line of JSON, then as many bytes as it says.

``{"kind": "put", "bytes": 3, ...}\\n`` and three bytes. What comes from the other side is bounded before it is kept
and checked before it is used: a frame that breaks a rule ends the exchange, since nothing after it can be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtimes.errors import RuntimesError
from runtimes.records import typed

HEADER_LIMIT = 1 << 16      # bytes of the JSON line
PAYLOAD_LIMIT = 8 << 20     # bytes after it; files are sent in many frames
BLOCK_BYTES = 1 << 18       # a file's share of one frame: 8 s at 0.25 Mbit/s, so that life is seen on a slow link
BEAT_S = 3.0                # each side says this often that it lives
SILENCE_S = 15.0            # a device that hears nothing for so long ends what it runs, and itself
LOST_S = 20.0               # a host that hears nothing for so long takes the device for lost


@dataclass(frozen=True, kw_only=True)
class Frame:
    """``kind`` says what it asks for or answers; ``header`` is the whole JSON object."""

    kind: str
    header: Mapping[str, Any]
    payload: bytes = b""


def pack(kind: str, payload: bytes = b"", **fields: Any) -> bytes:
    """The bytes of a frame.

    Raises:
        RuntimesError: if the header or the payload is over its limit.
    """
    line = json.dumps({**fields, "kind": kind, "bytes": len(payload)}).encode() + b"\n"
    if len(line) > HEADER_LIMIT or len(payload) > PAYLOAD_LIMIT:
        raise RuntimesError(f"a {kind!r} frame of {len(line)} and {len(payload)} bytes is over the limits of "
                            f"{HEADER_LIMIT} and {PAYLOAD_LIMIT}: send less at once")
    return line + payload


class Unpacker:
    """Cuts a stream, in pieces of any size, into frames. It never holds more than one frame and the piece after it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._header: dict[str, Any] | None = None

    def add(self, piece: bytes) -> None:
        self._bytes += piece

    def next(self) -> Frame | None:
        """The next frame, or None as long as it is not complete.

        Raises:
            RuntimesError: if what came is not a frame, or is over a limit.
        """
        if self._header is None:
            end = self._bytes.find(b"\n", 0, HEADER_LIMIT)
            if end < 0:
                if len(self._bytes) >= HEADER_LIMIT:
                    raise RuntimesError(f"not a frame: no line ends within {HEADER_LIMIT} bytes")
                return None
            self._header = _header(bytes(self._bytes[:end]))
            del self._bytes[: end + 1]
        size = self._header["bytes"]
        if len(self._bytes) < size:
            return None
        header, self._header = self._header, None
        payload = bytes(self._bytes[:size])
        del self._bytes[:size]
        return Frame(kind=header["kind"], header=header, payload=payload)


def parse(payload: bytes, where: str) -> dict[str, Any]:
    """The JSON object that is a frame's payload or a small file; ``where`` names it."""
    try:
        return typed(json.loads(payload), dict, where)
    except (ValueError, RecursionError) as error:
        raise RuntimesError(f"{where} is not JSON ({error})") from error


def _header(line: bytes) -> dict[str, Any]:
    header = parse(line, f"not a frame: {line[:40]!r}")
    size = header.get("bytes")
    if type(header.get("kind")) is not str or type(size) is not int or not 0 <= size <= PAYLOAD_LIMIT:
        raise RuntimesError(f"not a frame: {line[:200]!r} lacks its kind, or its size of 0 to {PAYLOAD_LIMIT} bytes")
    return header
