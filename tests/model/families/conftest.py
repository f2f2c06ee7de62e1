"""Every comparison of a family with transformers is noted, and `--families-table` writes the table of them all.

The table is for docs/families.md and, in brief, for docs/checkpoints.md, between two marks; what it says of a family is
what its tests have just seen.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tfm.model import FAMILIES

START, BRIEF, END = "<!-- families -->", "<!-- families in brief -->", "<!-- /families -->"

# float32 on both sides: a few layers of sums of some twenty terms of order 1, each rounded at 6e-8
SINGLE = 1e-5

UNTOLD = {
    "label2id",  # goes with num_labels
    *("vocab_size", "decoder_vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "dim", "d_model"),
    *("num_attention_heads", "n_head", "n_heads", "n_layers", "n_inner", "n_positions", "max_position_embeddings"),
    *("d_kv", "num_heads", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "hidden_dim"),
}
"""Options, most of them sizes, of which the table does not tell that they were varied."""


@dataclasses.dataclass
class Configuration:
    """One model that was compared: its class, configuration and options, the largest error and value, its graphs."""

    kind: str
    config: Any
    options: tuple[str, ...]
    error: float = 0.0
    largest: float = 0.0
    compared: bool = False
    verified: bool = False


class Families:
    """What a session has seen of each family."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Configuration]] = {}

    def compare(
        self, theirs: nn.Module, options: Mapping[str, Any], got: Tensor, want: Tensor, limit: float = SINGLE
    ) -> None:
        """Assert that we compute what transformers does, and note by how much we miss it.

        Args:
            theirs: The module of transformers.
            options: What it was made of.
            got: What we compute.
            want: What it computes.
            limit: The largest error allowed.
        """
        torch.testing.assert_close(got, want, rtol=0, atol=limit)
        found = self._find(theirs, options)
        found.compared = True
        found.error = max(found.error, (got - want).abs().max().item())
        found.largest = max(found.largest, want.abs().max().item())

    def note_verified(self, theirs: nn.Module, options: Mapping[str, Any]) -> None:
        """Note that every graph of this configuration was exported and has passed `verify`."""
        self._find(theirs, options).verified = True

    def table(self, *, brief: bool = False) -> str:
        """Give the table as Markdown, a row for each family; in brief, without classes and options.

        Raises:
            ValueError: The session has not seen every family, or nothing of one was compared.
        """
        import transformers

        lacking = sorted(set(FAMILIES) - {family for family, found in self.seen.items() if _compared(found)})
        if lacking:
            raise ValueError(f"no comparison with transformers was run for {', '.join(lacking)}")
        titles = [
            "Family",
            "Classes of transformers",
            "Options",
            "Configurations",
            "Largest error",
            "Exported, verified",
        ]
        rows = [titles, ["---"] * len(titles)]
        for family, found in sorted(self.seen.items()):
            compared = _compared(found)
            error, largest = max(each.error for each in compared), max(each.largest for each in compared)
            rows.append(
                [
                    f"`{family}`",
                    ", ".join(f"`{kind}`" for kind in dict.fromkeys(each.kind for each in compared)),
                    _varied(compared) or "–",
                    str(len(compared)),
                    f"{error:.0e}, of values up to {largest:.2g}",
                    f"{sum(each.verified for each in compared)} of {len(compared)}",
                ]
            )
        lines = [f"| {' | '.join(row[:1] + row[3:] if brief else row)} |" for row in rows]
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        lines += ["", f"Seen with {versions} and onnxruntime {onnxruntime.__version__}; float32, on a CPU."]
        return "\n".join(lines)

    def renew(self, text: str) -> str:
        """Replace what stands between the two marks with the table.

        Raises:
            ValueError: The text lacks them, or the session has not seen every family.
        """
        brief = BRIEF in text
        before, start, rest = text.partition(BRIEF if brief else START)
        _, end, after = rest.partition(END)
        if not start or not end:
            raise ValueError(f"the file has no {START} … {END} for the table to go between")
        return f"{before}{start}\n\n{self.table(brief=brief)}\n\n{END}{after}"

    def _find(self, theirs: nn.Module, options: Mapping[str, Any]) -> Configuration:
        kind, config = type(theirs).__name__, theirs.config
        names = tuple("num_labels" if name == "id2label" else name for name in options)
        configurations = self.seen.setdefault(config.model_type, {})
        return configurations.setdefault(f"{kind} {dict(options)}", Configuration(kind, config, names))


def _compared(found: Mapping[str, Configuration]) -> list[Configuration]:
    return [each for each in found.values() if each.compared]


def _varied(found: list[Configuration]) -> str:
    """Name the options that differ between the configurations, with their values where these are words."""
    told = []
    for name in sorted({name for each in found for name in each.options} - UNTOLD):
        values = [getattr(each.config, name, None) for each in found]
        if len({repr(value) for value in values}) > 1:
            words = [value.get("rope_type") if isinstance(value, dict) else value for value in values]
            words = sorted({word for word in words if isinstance(word, str)})
            told.append(f"`{name}`" + (f" ({', '.join(words)})" if words else ""))
    return ", ".join(told)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--families-table", type=Path, action="append", help="Markdown file whose table of families is to be renewed."
    )


FOUND = pytest.StashKey[Families]()


@pytest.fixture(scope="session")
def families(pytestconfig: pytest.Config) -> Families:
    return pytestconfig.stash.setdefault(FOUND, Families())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    paths: list[Path] = session.config.getoption("families_table", None) or []
    if exitstatus != pytest.ExitCode.OK:  # a table of what has failed would be no table
        return
    for path in paths:
        try:
            text = session.config.stash.setdefault(FOUND, Families()).renew(path.read_text(encoding="utf-8"))
            path.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:
            raise pytest.UsageError(f"--families-table {path}: {error}") from error
