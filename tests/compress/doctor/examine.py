"""The type of the fixture ``examined``."""

from __future__ import annotations

from collections.abc import Callable

from compress.doctor import Finding

Examine = Callable[..., list[Finding]]
