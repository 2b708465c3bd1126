"""The command line: parse, call one public function, print its result."""

from __future__ import annotations

import sys
from typing import Any

import click

from calibration.errors import CalibrationError
from compress.commands.bench import bench
from compress.commands.bundle import bundle_
from compress.commands.chain import demo, report, run
from compress.commands.data import data
from compress.commands.distill import distill
from compress.commands.doctor import doctor
from compress.commands.precision import budget, sensitivity
from compress.commands.stages import eval_, export, inspect, parity, prune, quantize
from compress.commands.targets import targets
from compress.errors import CompressError
from compress.store import is_disk_full
from runtimes.errors import RuntimesError


class _Commands(click.Group):
    """The one place where an expected failure becomes one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CompressError, CalibrationError, RuntimesError) as error:
            _fail(str(error))
        except KeyboardInterrupt:
            kept = "finished stages of a recipe are kept for the next `compress run`"
            click.echo(f"compress: interrupted; {kept}", err=True)
            sys.exit(130)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "compress"
            _fail(f"{error.format_message()} See: {where} --help")
        except Exception as error:  # libraries in C++ say in words alone that a disk is full
            if not is_disk_full(error):
                if isinstance(error, OSError) and error.filename is not None:  # a path of the user's
                    _fail(f"{error.filename}: {error.strerror}")
                raise
            _fail(f"no space left on the disk ({error}): free some and run it again; what was finished is kept")


def _fail(message: str) -> None:
    click.echo(f"compress: {' '.join(message.split())}", err=True)
    sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="compress-edge", prog_name="compress")
def cli() -> None:
    """Make a multimodal PyTorch model small and fast for a device, and prove what the shipped file does there."""


for command in (
    demo, data, doctor, run, inspect, prune, distill, quantize, budget, sensitivity, export, parity, eval_, bench,
    bundle_, report, targets,
):  # fmt: skip
    cli.add_command(command)
