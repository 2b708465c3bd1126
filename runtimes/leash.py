"""``python -m runtimes.leash PARENT MODULE ARGUMENT...``: run a module in a process that ends when its parent does.

The kernel kills it (Linux, PR_SET_PDEATHSIG), however the parent ended: a measurement whose host was killed with
SIGKILL would run to its end and disturb the next one.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1   # linux/prctl.h


def end_with(parent: int) -> None:
    """Have this process killed when ``parent``, the process that started it, ends.

    The kernel watches the *thread* that started this process, so that thread has to wait for it. Where there is no
    prctl (not Linux) or no ctypes (a minimal Python) nothing is done, and whoever started the process has to end it.
    """
    if not sys.platform.startswith("linux") or importlib.util.find_spec("_ctypes") is None:
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:      # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: list[str]) -> None:
    parent, module, *rest = arguments
    end_with(int(parent))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
