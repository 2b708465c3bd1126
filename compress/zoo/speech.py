"""Speech made by espeak-ng, a program that speaks the same way every time; what it said is kept in the cache.

It is the system's own where one is installed, else Debian's, unpacked into the cache without root. It runs as a process
of its own, and only to make data.
"""

from __future__ import annotations

import io
import math
import os
import platform
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from compress.errors import CompressError
from runtimes.hashing import json_digest

PACKAGES = ("espeak-ng", "espeak-ng-data", "libespeak-ng1", "libsonic0")
_SOUND = ("create_audio_device_object", *(f"audio_object_{name}" for name in (
    "open", "close", "destroy", "drain", "flush", "strerror", "write")))  # fmt: skip
"""What libespeak-ng wants of libpcaudio, which plays sound and would bring a sound server's libraries with it."""


@dataclass(frozen=True)
class Utterance:
    """What is said and how: ``voice`` as ``espeak-ng -v`` takes it, ``speed`` in words a minute, ``pitch`` 0 to 99."""

    text: str
    voice: str
    speed: int
    pitch: int


@dataclass(frozen=True)
class Speaker:
    """The program, and the environment it runs in."""

    program: str
    environment: dict[str, str]

    @property
    def version(self) -> str:
        return self._run("--version").decode(errors="replace").partition("Data at")[0].strip()

    def say(self, utterance: Utterance) -> tuple[np.ndarray, int]:
        """The sound, i16 ``(samples,)``, without the pause at its end, and its rate in Hz."""
        said = self._run("-z", "--stdout", "-v", utterance.voice, "-s", str(utterance.speed), "-p",
                         str(utterance.pitch), utterance.text)  # fmt: skip
        try:
            with wave.open(io.BytesIO(said)) as file:
                rate, samples = file.getframerate(), np.frombuffer(file.readframes(len(said)), np.int16)
        except (wave.Error, EOFError, ValueError) as error:
            raise CompressError(f"{self.program} gave no sound for {utterance} ({error})") from error
        return samples, rate

    def _run(self, *arguments: str) -> bytes:
        try:
            done = subprocess.run([self.program, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=60, check=False)  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompressError(f"{self.program} does not run: {error}") from error
        if done.returncode:
            why = " ".join(done.stderr.decode(errors="replace").split())[:300]
            raise CompressError(f"{self.program} {' '.join(arguments)} failed ({done.returncode}): {why}")
        return done.stdout


def find_speaker() -> Speaker:
    """The system's espeak-ng, or Debian's in the cache.

    Raises:
        CompressError: if neither can be had here, with the reason.
    """
    installed = shutil.which("espeak-ng")
    if installed:
        return Speaker(installed, dict(os.environ))
    from compress.device.debian import host_architecture, unpack
    from compress.export.rtx_libraries import cache_folder

    root = cache_folder().absolute() / "espeak-ng" / platform.machine()
    try:
        unpack(PACKAGES, root, architecture=host_architecture())
        (data,) = root.glob("usr/lib/*/espeak-ng-data")
        silent = _without_sound(root.with_name(f"{root.name}-silent"))
    except CompressError as error:
        raise CompressError(f"speech needs espeak-ng, which is not installed here: {error}") from error
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{silent}:{data.parent}", "ESPEAK_DATA_PATH": str(data)}
    return Speaker(str(root / "usr/bin/espeak-ng"), environment)


def spoken(utterances: Sequence[Utterance], rate: int) -> list[np.ndarray]:
    """The sound of each, f32 ``(samples,)`` in [-1, 1] at ``rate`` Hz; spoken once, and read from the cache then.

    Raises:
        CompressError: as :func:`find_speaker` does, or if a voice is not known.
    """
    from compress.export.rtx_libraries import cache_folder
    from runtimes.arrays import read_arrays, write_arrays
    from runtimes.errors import RuntimesError

    speaker = find_speaker()
    key = json_digest([speaker.version, rate, [astuple(one) for one in utterances]])
    path = cache_folder().absolute() / "speech" / f"{key}.npz"
    try:
        held = read_arrays(path)
    except RuntimesError:           # not there, or cut short
        held = _said(speaker, utterances, rate)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, held)
    return [part / np.float32(32768) for part in np.split(held["sound"], np.cumsum(held["lengths"])[:-1])]


def _said(speaker: Speaker, utterances: Sequence[Utterance], rate: int) -> dict[str, np.ndarray]:
    from scipy.signal import resample_poly

    def one(utterance: Utterance) -> np.ndarray:
        samples, own = speaker.say(utterance)
        shared = math.gcd(rate, own)
        sound = resample_poly(samples.astype(np.float64), rate // shared, own // shared)
        return np.asarray(np.clip(np.rint(sound), -32768, 32767), np.int16)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        parts = list(pool.map(one, utterances))
    return {"sound": np.concatenate(parts), "lengths": np.array([len(part) for part in parts])}


def _without_sound(folder: Path) -> Path:
    """A folder with a library that stands in for libpcaudio and does nothing."""
    library = folder / "libpcaudio.so.0"
    if library.is_file():
        return folder
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CompressError("there is no C compiler (cc) to build a stand-in for its sound library with")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source, built = Path(scratch) / "silent.c", Path(scratch) / library.name
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SOUND))
        done = subprocess.run([compiler, "-shared", "-fPIC", "-o", str(built), str(source)], capture_output=True,
                              text=True, check=False)  # fmt: skip
        if done.returncode:
            raise CompressError(f"{compiler} built no stand-in for its sound library: {done.stderr.strip()[:300]}")
        built.rename(library)
    return folder
