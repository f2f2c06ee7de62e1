"""The command line: a thin shell over the rooms. Exit codes: 0 done, 1 a gate failed, 2 bad usage or bad input, 3 else.

What is printed goes through `streams` and `screen`; what nobody foresaw ends in `ending`.
"""

import sys
from collections.abc import Sequence

import click

from tfm.errors import TfmError

from .activations import activations as activations_command
from .doctor import doctor as doctor_command
from .ending import exit_code
from .export import export as export_command
from .inspect import inspect as inspect_command
from .latency import latency as latency_command
from .map import map_rows as map_command
from .pack import pack as pack_command
from .parity import parity as parity_command
from .prune import prune as prune_command
from .quantize import quantize as quantize_command
from .run import run as run_command
from .serve import serve as serve_command
from .signals import end_undisturbed, explain_interruption, heed_signals
from .streams import outputs, say
from .verify_ops import verify_ops as verify_ops_command

__all__ = ["export", "main"]

_REFUSED = 2
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
tfm.add_command(map_command, "map")
tfm.add_command(pack_command, "pack")
tfm.add_command(parity_command, "parity")
tfm.add_command(prune_command, "prune")
tfm.add_command(quantize_command, "quantize")
tfm.add_command(run_command, "run")
tfm.add_command(serve_command, "serve")
tfm.add_command(verify_ops_command, "verify-ops")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `tfm`."""
    _run(tfm, arguments, "tfm")


def export(arguments: Sequence[str] | None = None) -> None:
    """Run `tfm-export`."""
    _run(export_command, arguments, "tfm-export")


def _run(command: click.Command, arguments: Sequence[str] | None, name: str) -> None:
    # Before anything that would have to be cleaned up.
    heed_signals()
    with outputs():
        code = exit_code(name, lambda: _invoke(command, arguments, name))
    sys.exit(code)


def _invoke(command: click.Command, arguments: Sequence[str] | None, name: str) -> int:
    """Do it, and give the exit code of what is foreseen."""
    try:
        # Not standalone: click would end the process, by exit codes of its own.
        return command.main(arguments, prog_name=name, standalone_mode=False) or 0
    except TfmError as error:
        say(f"{name}: {error}", err=True)
        return _REFUSED
    except click.ClickException as error:
        error.show()
        return _REFUSED  # click's own code would be 1 for a file that cannot be opened
    except (click.Abort, KeyboardInterrupt):
        say(f"{name}: {explain_interruption()}", err=True)
        return _INTERRUPTED
    finally:
        # From here on the exit code is known, and nothing is to change it.
        end_undisturbed()
