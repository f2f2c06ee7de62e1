"""A configuration of any family of transformers' is bounded by the weights beside it before a module is made of it."""

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tfm.errors import CheckpointError, ConfigError, TfmError
from tfm.export.generic.open import is_generic, open_generic
from tfm.export.generic.sizes import check_counts, check_parts, left_out

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SIZES = {"vocab_size": 29, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 18}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron-bert")
    transformers.MegatronBertModel(transformers.MegatronBertConfig(**SIZES)).save_pretrained(folder)
    return folder


def edited(saved: Path, folder: Path, **change: Any) -> Path:
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    return folder


ODD: list[tuple[dict[str, Any], type[TfmError], str]] = [
    ({"num_hidden_layers": 2**31}, ConfigError, "num_hidden_layers must be at most 10"),
    ({"num_hidden_layers": 900}, CheckpointError, "far more parts than there are weights"),
    ({"num_hidden_layers": 1}, CheckpointError, "holds more layers than the configuration says: encoder.layer.1."),
    ({"num_hidden_layers": -(10**400)}, ConfigError, "num_hidden_layers must be at most"),
    ({"max_position_embeddings": 2**40}, ConfigError, "max_position_embeddings must be at most 65536"),
    ({"max_position_embeddings": 20}, CheckpointError, r"position_embeddings.weight is \(18, 12\), not \(20, 12\)"),
    ({"hidden_size": 2**20}, CheckpointError, "parameters, but the weights hold|cannot read"),
    ({"hidden_size": 2**40}, ConfigError, "hidden_size must be at most 16777216"),
    ({"vocab_size": 2**40}, CheckpointError, "parameters, but the weights hold"),
    (
        {"vocab_size": 30},
        CheckpointError,
        r"word_embeddings.weight is \(29, 12\), not \(30, 12\)",
    ),
    ({"num_labels": 2**31}, ConfigError, "num_labels must be at most 1048576"),
    ({"num_attention_heads": 0}, CheckpointError, "cannot read"),
    ({"num_attention_heads": "2"}, CheckpointError, "cannot read"),
    ({"hidden_size": None}, CheckpointError, "cannot read"),
    ({"architectures": [[]]}, ConfigError, "architectures must be a list of names"),
    ({"architectures": "MegatronBertModel"}, ConfigError, "architectures must be a list of names"),
    ({"architectures": {"a": 1}}, ConfigError, "architectures must be a list of names"),
    ({"dtype": "float9"}, CheckpointError, "cannot read"),
    ({"id2label": [1]}, CheckpointError, "cannot read"),
]


@pytest.mark.parametrize(("change", "kind", "told"), ODD, ids=lambda value: str(value)[:60])
def test_odd_sizes_are_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], kind: type[TfmError], told: str
) -> None:
    folder = edited(saved, tmp_path, **change)
    assert is_generic(folder)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(kind, match=told) as caught:
        open_generic(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 700
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "null", "{", '{"model_type": "megatron-bert", "model_type": "bert"}']
)
def test_what_is_no_configuration_is_left_to_the_native_reader(saved: Path, tmp_path: Path, text: str) -> None:
    folder = edited(saved, tmp_path)
    (folder / "config.json").write_text(text)
    assert not is_generic(folder)


def test_an_untouched_checkpoint_is_read(saved: Path) -> None:
    assert open_generic(saved).inputs[0].below == 29


def stack(count: int) -> Callable[[], nn.Module]:
    return lambda: nn.ModuleList(nn.Linear(2, 2) for _ in range(count))


def test_making_is_stopped_where_there_are_too_many_parts() -> None:
    weights = {"a": torch.ones(2, 2)}
    check_parts(Path("x"), stack(3), weights)
    with pytest.raises(CheckpointError, match=r"^x: the configuration makes far more parts than there are weights"):
        check_parts(Path("x"), stack(10**9), weights)
    nn.Linear(2, 2)  # and nothing is counted any more
    check_parts(Path("x"), stack(3), weights)


def test_tables_are_bounded() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(1 << 20, 1 << 20))

    with pytest.raises(CheckpointError, match="asks for tables of 4398046511104 bytes"):
        check_parts(Path("x"), Table, {"a": torch.ones(2)})


def test_lengths_without_a_table_are_let_be() -> None:
    weights = {"a": torch.ones(2, 2)}
    check_counts(Path("c"), {"max_position_embeddings": 10**7, "rope_theta": 10**9, "eos_token_id": 2**40}, weights)
    check_counts(Path("c"), {"text_config": {"rope_parameters": {"rope_theta": 1e4}, "seq_length": 10**6}}, weights)
    check_counts(Path("c"), {"seq_length": 10**6}, {"wpe": torch.empty(10**6, 1, device="meta")})
    with pytest.raises(ConfigError, match=r"^c: seq_length must be at most 65536"):
        check_counts(Path("c"), {"text_config": {"seq_length": 10**6}}, weights)
    with pytest.raises(ConfigError, match=r"^c: depths must be at most 1001"):
        check_counts(Path("c"), {"depths": [2, 2, 10**6]}, weights)


def test_layers_that_are_left_out_are_told_from_heads() -> None:
    module = nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(2, 2)])})
    names = ["layer.1.weight", "layer.7.bias", "head.weight", "layer.0.extra", "cls.0.weight"]
    assert left_out(names, module) == ["layer.1.weight", "layer.7.bias"]


def test_a_limit_of_memory_is_kept(saved: Path, tmp_path: Path) -> None:
    """As `config_json.py` has it: a depth of 2**31 took 16 GB, though the file has two layers."""
    folder = edited(saved, tmp_path, num_hidden_layers=2**31, layer_types=None)
    program = (
        "import resource, sys, warnings\nwarnings.simplefilter('ignore')\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from tfm.errors import ConfigError\nfrom tfm.export.generic.open import open_generic\n"
        "try:\n    open_generic(sys.argv[1])\nexcept ConfigError as error:\n    print('refused', error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=300)
    assert "refused" in result.stdout, result.stderr
