"""Speech: what is asked of the program, what is kept, and what is said where there is none; and the real program."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.errors import CompressError
from compress.zoo import speech
from compress.zoo.speech import Speaker, Utterance, find_speaker, spoken

HELLO = Utterance("hello", "en+f1", 150, 40)

# Speaks a sine for a tenth of a second a letter at 22050 Hz, and writes down how it was called.
FAKE = """#!{python}
import math, struct, sys, wave
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if "--version" in sys.argv:
    print("eSpeak NG text-to-speech: 9.9  Data at: /somewhere")
    sys.exit()
if "en+broken" in sys.argv:
    sys.stderr.write("Error: The specified espeak-ng voice does not exist.\\n")
    sys.exit(1)
if "en+mute" in sys.argv:
    sys.exit()
samples = [int(10000 * math.sin(2 * math.pi * 441 * at / 22050)) for at in range(2205 * len(sys.argv[-1]))]
with wave.open(sys.stdout.buffer, "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(22050)
    file.writeframes(struct.pack(f"<{{len(samples)}}h", *samples))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is called espeak-ng; where it writes how it was called."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    program = folder / "espeak-ng"
    program.write_text(FAKE.format(python=sys.executable, log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    return log


def test_the_installed_program_speaks(fake: Path) -> None:
    speaker = find_speaker()
    assert speaker.version == "eSpeak NG text-to-speech: 9.9"
    samples, rate = speaker.say(HELLO)
    assert (rate, samples.dtype, samples.shape) == (22050, np.int16, (11025,))
    assert fake.read_text().splitlines()[-1] == "-z --stdout -v en+f1 -s 150 -p 40 hello"


def test_what_was_said_is_kept(fake: Path, tmp_path: Path) -> None:
    """At the rate that is asked for: 441 Hz stay 441 Hz, half a second half a second."""
    utterances = [HELLO, Utterance("no", "en", 150, 40)]
    first = spoken(utterances, 8000)
    assert [(sound.dtype, len(sound)) for sound in first] == [(np.float32, 4000), (np.float32, 1600)]
    spectrum = np.abs(np.fft.rfft(first[0]))
    assert spectrum.argmax() * 8000 / 4000 == pytest.approx(441, abs=2)
    assert first[0][1000:3000].max() == pytest.approx(10000 / 32768, rel=0.01)
    calls = fake.read_text()
    again = spoken(utterances, 8000)
    assert fake.read_text().removeprefix(calls).split() == ["--version"]
    for sound, kept in zip(first, again, strict=True):
        np.testing.assert_array_equal(sound, kept)
    (held,) = (tmp_path / "cache" / "speech").iterdir()
    held.write_bytes(held.read_bytes()[:100])           # a copy that was cut short is made again
    np.testing.assert_array_equal(spoken(utterances, 8000)[1], first[1])
    assert len(spoken(utterances[:1], 8000)) == 1


def test_a_program_that_fails(fake: Path) -> None:
    speaker = find_speaker()
    with pytest.raises(CompressError, match=r"-v en\+broken .* failed \(1\): Error: The specified .* does not exist"):
        speaker.say(Utterance("hello", "en+broken", 150, 40))
    with pytest.raises(CompressError, match="gave no sound for Utterance"):
        speaker.say(Utterance("hello", "en+mute", 150, 40))
    with pytest.raises(CompressError, match=r"/no/espeak-ng does not run: .*No such file"):
        Speaker("/no/espeak-ng", {}).say(HELLO)


def test_where_it_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CompressError, match="speech needs espeak-ng, which is not installed here: Debian's packages"):
        find_speaker()
    with pytest.raises(CompressError, match=r"no C compiler .* stand-in for its sound library"):
        speech._without_sound(tmp_path / "silent")


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match="built no stand-in for its sound library: no such header"):
        speech._without_sound(tmp_path / "silent")


@pytest.mark.slow
def test_real_speech() -> None:
    """The same sound every time; another voice, a higher speed and another word sound otherwise."""
    try:
        speaker = find_speaker()
    except CompressError as error:
        pytest.skip(str(error))
    lamp = Utterance("turn on the lamp", "en-us+f2", 150, 50)
    sound, rate = speaker.say(lamp)
    np.testing.assert_array_equal(speaker.say(lamp)[0], sound)
    assert 0.7 < len(sound) / rate < 1.8
    fast, _ = speaker.say(Utterance(lamp.text, lamp.voice, 220, 50))
    assert len(fast) < 0.85 * len(sound)
    other, _ = speaker.say(Utterance(lamp.text, "en-gb+m3", 150, 50))
    assert len(other) != len(sound) or (other != sound).any()
