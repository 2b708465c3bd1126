"""Frames: what goes in comes out, in pieces of any size, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.errors import RuntimesError
from runtimes.frames import HEADER_LIMIT, PAYLOAD_LIMIT, Unpacker, pack, parse


@given(st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=99)), max_size=5), st.integers(1, 50))
def test_round_trip(frames: list[tuple[str, bytes]], size: int) -> None:
    data = b"".join(pack(kind, payload, number=number) for number, (kind, payload) in enumerate(frames))
    unpacker, found = Unpacker(), []
    for start in range(0, len(data), size):
        unpacker.add(data[start : start + size])
        while (frame := unpacker.next()) is not None:
            assert frame.header["number"] == len(found)
            found.append((frame.kind, frame.payload))
    assert found == frames


@pytest.mark.parametrize(("data", "message"), [
    (b"Welcome to the board\n", "not a frame: b'Welcome to the board' is not JSON"),
    (b"[]\n", "must be an object"),
    (b"[" * 50000 + b"\n", "is not JSON"),
    (b'{"bytes": 0}\n', "lacks its kind, or its size"),
    (b'{"kind": 3, "bytes": 0}\n', "lacks its kind"),
    (b'{"kind": "put"}\n', "lacks its kind, or its size"),
    (b'{"kind": "put", "bytes": -1}\n', "its size of 0 to"),
    (b'{"kind": "put", "bytes": true}\n', "its size of 0 to"),
    (b'{"kind": "put", "bytes": 1e3}\n', "its size of 0 to"),
    (f'{{"kind": "put", "bytes": {PAYLOAD_LIMIT + 1}}}\n'.encode(), "its size of 0 to"),
    (b'{"kind": "put", "bytes": ' + b"9" * 5000 + b"}\n", "not a frame"),
    (b"\xff\xfe\n", "is not JSON"),
    (b"x" * HEADER_LIMIT, f"no line ends within {HEADER_LIMIT} bytes"),
])  # fmt: skip
def test_not_a_frame(data: bytes, message: str) -> None:
    unpacker = Unpacker()
    unpacker.add(data)
    with pytest.raises(RuntimesError, match=message):
        unpacker.next()


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    unpacker = Unpacker()
    unpacker.add(data)
    try:
        while unpacker.next() is not None:
            pass
    except RuntimesError:
        pass


def test_too_large_to_send() -> None:
    with pytest.raises(RuntimesError, match=r"a 'data' frame of .* is over the limits"):
        pack("data", bytes(PAYLOAD_LIMIT + 1))
    with pytest.raises(RuntimesError, match="a 'run' frame of"):
        pack("run", name="x" * HEADER_LIMIT)


def test_parse() -> None:
    assert parse(b'{"a": 1}', "it") == {"a": 1}
    with pytest.raises(RuntimesError, match="it is not JSON"):
        parse(b"{", "it")
    with pytest.raises(RuntimesError, match="it must be an object"):
        parse(b"3", "it")
