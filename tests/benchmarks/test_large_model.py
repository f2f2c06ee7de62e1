"""The made-up llama of large_model.py: that it is a checkpoint, the same each time, and what its memory is told by."""

import os
import subprocess
import sys
from pathlib import Path

import large_model
import numpy as np
import pytest
import torch

from tfm.model import load_checkpoint


def test_it_is_a_checkpoint_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "heads": 4, "kv_heads": 2}
    monkeypatch.setattr(large_model, "SHAPES", shapes)
    monkeypatch.setattr(large_model, "_CHUNK", 1000)  # so that weights are written in pieces
    count = large_model.write_checkpoint(tmp_path / "one", 2)
    assert large_model.write_checkpoint(tmp_path / "other", 2) == count
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]
    assert 2 * count < len(files[0]) < 2 * count + 10_000  # two bytes a parameter, and the header
    model = load_checkpoint(tmp_path / "one").float()
    assert sum(p.numel() for p in model.parameters()) == count
    ids = torch.tensor([[5, 17, 95, 3]])
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids))
    assert logits.argmax(-1).tolist() == ids.tolist()  # it says again what it read


def test_memory_of_what_was_started_counts() -> None:
    alone = large_model.memory_of(os.getpid())
    program = "import sys; held = bytearray(b'x') * 200_000_000; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert large_model.memory_of(os.getpid()) - alone == pytest.approx(0.2, abs=0.05)
        child.communicate("")
    assert large_model.memory_of(os.getpid()) == pytest.approx(alone, abs=0.05)


def test_what_is_no_process_holds_nothing() -> None:
    assert large_model.memory_of(np.iinfo(np.int32).max) == 0
