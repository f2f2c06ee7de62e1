"""The command line: a thin shell over the rooms. Exit codes: 0 done, 1 a gate failed, 2 bad usage or bad input."""

import sys
from collections.abc import Sequence

import click

from tfm.errors import TfmError

from .activations import activations as activations_command
from .doctor import doctor as doctor_command
from .export import export as export_command
from .inspect import inspect as inspect_command
from .latency import latency as latency_command
from .parity import parity as parity_command
from .prune import prune as prune_command
from .quantize import quantize as quantize_command
from .run import run as run_command
from .signals import explain_interruption, heed_signals
from .verify_ops import verify_ops as verify_ops_command

__all__ = ["export", "main"]

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tfm-export")
def tfm() -> None:
    """Export PyTorch Transformers to small, fast, verified ONNX bundles, and run them."""


tfm.add_command(activations_command, "activations")
tfm.add_command(doctor_command, "doctor")
tfm.add_command(export_command, "export")
tfm.add_command(inspect_command, "inspect")
tfm.add_command(latency_command, "latency")
tfm.add_command(parity_command, "parity")
tfm.add_command(prune_command, "prune")
tfm.add_command(quantize_command, "quantize")
tfm.add_command(run_command, "run")
tfm.add_command(verify_ops_command, "verify-ops")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `tfm`."""
    _run(tfm, arguments, "tfm")


def export(arguments: Sequence[str] | None = None) -> None:
    """Run `tfm-export`."""
    _run(export_command, arguments, "tfm-export")


def _run(command: click.Command, arguments: Sequence[str] | None, name: str) -> None:
    heed_signals()
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except TfmError as error:
        click.echo(f"{name}: {error}", err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: {explain_interruption()}", err=True)
        code = _INTERRUPTED
    sys.exit(code or 0)
