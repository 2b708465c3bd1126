"""The ``compress`` command: says what to install where the pipeline is not, else hands over to the command line."""

from __future__ import annotations

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

    cli()


if __name__ == "__main__":
    main()
