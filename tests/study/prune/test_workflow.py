"""Pruning as a call: what is told of it, what ends it early, and options that contradict each other."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tfm.errors import InputError
from tfm.model import Transformer, load_checkpoint, save_checkpoint
from tfm.study.prune import PruneOptions, prune_checkpoint

SCRIPT = """
import torch
def losses(model):
    ids = torch.arange(12).reshape(2, 6)
    return [lambda model: model(ids, src_mask=ids > 0).logsumexp(-1).sum(1)] * 2
def fine_tune(model, original, say):
    say(1, 2)
    raise EOFError
"""


def test_its_stages_are_told_and_a_stop_keeps_what_is_there(
    make_model: Callable[..., Transformer], tmp_path: Path
) -> None:
    save_checkpoint(make_model(kind="encoder", nhead=4, dim_feedforward=32), tmp_path / "model.pt")
    (tmp_path / "tune.py").write_text(SCRIPT, encoding="utf-8")
    told: dict[str, list[tuple[int, int, str]]] = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Callable[[int, int, str], None]]:
        told[name] = []
        yield lambda *step: told[name].append(step)

    options = PruneOptions(heads=2, units=16, multiple=4, script=tmp_path / "tune.py")
    arguments = (tmp_path / "model.pt", tmp_path / "small", options)
    with pytest.raises(EOFError):
        prune_checkpoint(*arguments)
    assert not (tmp_path / "small").exists()
    pruned = prune_checkpoint(*arguments, stops=(EOFError,), stage=stage)
    assert isinstance(pruned.stopped, EOFError)
    assert pruned.report == json.loads((tmp_path / "small" / "pruning.json").read_text())
    assert pruned.report["interrupted"] is True
    assert [block["count"][1] for block in pruned.report["blocks"]] == [2, 16]
    assert load_checkpoint(tmp_path / "small").config.encoder_feedforward == (16,)
    tuned = f"fine-tune by {tmp_path / 'tune.py'}"
    assert told == {"read checkpoint": [], "measure importance": [(0, 2, ""), (1, 2, "")], tuned: [(0, 2, "")]}


@pytest.mark.parametrize("options", [{}, {"keep": 0.5, "heads": 1}, {"keep": 0.5, "parameters": 9}])
def test_how_much_is_left_is_said_in_one_way(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="say how much is to be left, in one way"):
        PruneOptions(**options)  # type: ignore[arg-type]
