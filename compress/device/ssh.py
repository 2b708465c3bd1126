"""The command that reaches a device with the user's own OpenSSH client, and what its failures mean.

``~/.ssh/config`` says how the address is reached: host name, port, user, key, jump hosts. Host keys are checked as it
says; nobody is asked for a password or a confirmation, no port is opened, and neither agent nor display is forwarded.
"""

from __future__ import annotations

import os
import re
import shlex

from compress.device.bootstrap import ONE_LINE
from compress.errors import CompressError

OPTIONS = (
    "-T", "-a", "-x",
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
    "-o", "ClearAllForwardings=yes", "-o", "PermitLocalCommand=no", "-o", "RemoteCommand=none",
    "-o", "ControlMaster=no",   # a connection the user holds open is used, none is left behind
)

# what ssh says -> what to tell the user; the first that matches
_FAILURES = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed",
     "its host key has changed, so it may not be that device: if you know why, remove the old key with "
     "`ssh-keygen -R` and check the new one in `{ssh} {address}`"),
    (r"Host key verification failed|host key is known",
     "its host key is not known: connect once by hand with `{ssh} {address}` and check the fingerprint"),
    (r"Permission denied|Too many authentication failures",
     "it accepts none of your keys: `{ssh} {address} true` must work without a password (ssh-copy-id installs a key)"),
    (r"Could not resolve hostname",
     "there is no host of that name: check the address in targets.toml, or give its HostName in ~/.ssh/config "
     "(a port belongs there too)"),
    (r"Connection refused", "nothing answers on its ssh port: start sshd there, or give the Port in ~/.ssh/config"),
    (r"timed out|Timeout, server", "it does not answer: check that it is switched on and on the network"),
    (r"No route to host|Network is unreachable", "there is no way to it: check that it is on the network"),
    (r"Connection (closed|reset)|kex_exchange_identification|Broken pipe",
     "the connection was closed: see what `{ssh} {address} true` says"),
)  # fmt: skip


def ssh_client() -> list[str]:
    """``ssh``, or the words of ``$COMPRESS_SSH``, such as ``ssh -F other_config``.

    Raises:
        CompressError: if the variable cannot be split into words.
    """
    text = os.environ.get("COMPRESS_SSH") or "ssh"
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CompressError(f"COMPRESS_SSH={text!r} is not a command ({error}): write it as 'ssh -F FILE'") from error


def ssh_command(address: str, python: str = "python3") -> list[str]:
    """The arguments that start the bootstrap at ``address`` with the interpreter ``python``, a name or a path there."""
    return [*ssh_client(), *OPTIONS, "--", address, remote_command(python)]


def remote_command(python: str) -> str:
    """What the shell there is given; ``exec``, so that no shell stays between ``sshd`` and the interpreter.

    A path may begin with ``~/``, which the shell has to see unquoted.
    """
    home, path = ("~/", python[2:]) if python.startswith("~/") else ("", python)
    return f"exec {home}{shlex.quote(path)} -c {shlex.quote(ONE_LINE)} compress"


def explain(address: str, stderr: str) -> str | None:
    """One line for a failure of ssh itself, or None if ``stderr`` is not one that is known."""
    for pattern, text in _FAILURES:
        if re.search(pattern, stderr):
            return text.format(ssh=shlex.join(ssh_client()), address=address)
    return None
