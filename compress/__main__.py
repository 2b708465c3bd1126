"""The ``compress`` command: says what to install where the pipeline is not, else hands over to the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; exit code 2 where its packages are not installed."""
    try:
        import click  # noqa: F401
        import msgspec  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(
            f"compress: the command line needs the pipeline, which is not installed ({error}): "
            'pip install "compress-edge[pipeline]"',
            file=sys.stderr,
        )
        sys.exit(2)
    from compress.cli import cli

    # A factory or metric may be in the current folder; at the end of the path it can hide no installed package.
    sys.path.append(os.getcwd())
    cli()


if __name__ == "__main__":
    main()
