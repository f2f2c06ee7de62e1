"""What training loops save: weights under any name, Lightning's, Trainer's folders, torch.distributed.checkpoint's."""

import argparse
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata

from tfm.errors import CheckpointError
from tfm.export.source import open_source
from tfm.model import Transformer, load_checkpoint

Weights = dict[str, Tensor]


@pytest.fixture
def model(make_model: Callable[..., Transformer]) -> Transformer:
    return make_model(kind="decoder", activation="gelu", num_encoder_layers=0)


def saved(content: Any, model: Transformer, folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def same(path: Path, model: Transformer) -> bool:
    found, expected = load_checkpoint(path).state_dict(), model.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


MOMENTS = {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 1e-3}]}


@pytest.mark.parametrize(
    "nest",
    [
        lambda weights: {"net": weights, "epoch": 3},
        lambda weights: {"checkpoint": {"generator": weights}, "step": 4, "optimizer": MOMENTS},
        lambda weights: {"weights": weights, "optim_states": {"exp_avg": torch.ones(2, 2)}},
        lambda weights: {"state_dict": {"inner": weights}},
        lambda weights: {"state_dict": prefixed(weights, "net.")},
        lambda weights: {"state_dict": prefixed(weights, "network.module.")},
    ],
)
def test_weights_are_found_wherever_they_alone_are(
    nest: Callable[[Weights], Any], model: Transformer, tmp_path: Path
) -> None:
    assert same(saved(nest(model.state_dict()), model, tmp_path), model)


def test_of_two_models_none_is_chosen(model: Transformer, tmp_path: Path) -> None:
    weights = model.state_dict()
    with pytest.raises(CheckpointError, match=r"holds weights under 'ema' and 'net'; save the ones meant"):
        load_checkpoint(saved({"net": weights, "ema": weights}, model, tmp_path))


def lightning(weights: Weights, **more: Any) -> dict[str, Any]:
    return {"state_dict": weights, "pytorch-lightning_version": "2.5", "optimizer_states": [MOMENTS], **more}


def test_lightning_s_metrics_and_namespace_are_no_weights(model: Transformer, tmp_path: Path) -> None:
    weights = prefixed(model.state_dict(), "net.") | {"accuracy.tp": torch.zeros(3), "seen": torch.tensor(5)}
    content = lightning(weights, hyper_parameters=argparse.Namespace(lr=0.1, layers=2))
    assert same(saved(content, model, tmp_path), model)
    # What may be a part of the model is not left out.
    for more in ({"criterion.weight": torch.ones(2)}, {"table": torch.ones(2, 2)}):
        with pytest.raises(CheckpointError, match=r"criterion\.weight|not in the model|table"):
            load_checkpoint(saved(lightning(weights | more), model, tmp_path))


class Attack:
    """Touches a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path(self.path).touch, ()


def test_a_namespace_may_hold_no_code(model: Transformer, tmp_path: Path) -> None:
    content = lightning(model.state_dict(), hyper_parameters=argparse.Namespace(x=Attack(str(tmp_path / "ran"))))
    with pytest.raises(CheckpointError, match="nothing was run"):
        load_checkpoint(saved(content, model, tmp_path))
    assert not (tmp_path / "ran").exists()


def test_of_trainer_s_checkpoints_the_last_whole_one_is_read(model: Transformer, tmp_path: Path) -> None:
    for step in (5, 10, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        other = {name: weight + (100 - step) for name, weight in model.state_dict().items()}
        shutil.move(saved({"state_dict": other}, model, folder), folder / "pytorch_model.bin")
    (tmp_path / "checkpoint-200").mkdir()  # interrupted
    assert same(tmp_path, model)
    stages: list[str] = []

    def stage(name: str) -> Any:
        stages.append(name)
        from tfm.quantize import silent

        return silent(name)

    assert open_source(tmp_path, stage=stage).path == tmp_path / "checkpoint-100"
    assert stages == ["read checkpoint checkpoint-100, the last"]


def write_plan(folder: Path, weights: Weights, parts: int = 1, path: tuple[str, ...] = ("model",)) -> metadata.Metadata:
    """Write a folder of torch.distributed.checkpoint by hand, each tensor cut into parts along its first axis."""
    tensors, places, paths = {}, {}, {}
    with open(folder / "__0_0.distcp", "wb") as shard:
        for key, weight in weights.items():
            name = ".".join((*path, key))
            chunks, start = [], 0
            for index, part in enumerate(weight.chunk(parts)):
                offsets = torch.Size([start, *[0] * (weight.dim() - 1)])
                chunks.append(metadata.ChunkStorageMetadata(offsets=offsets, sizes=part.size()))
                begin = shard.tell()
                torch.save(part.clone(), shard)
                index_of = metadata.MetadataIndex(name, offsets, index)
                places[index_of] = filesystem._StorageInfo("__0_0.distcp", begin, shard.tell() - begin)
                start += len(part)
            properties = metadata.TensorProperties(dtype=weight.dtype)
            tensors[name] = metadata.TensorStorageMetadata(properties=properties, size=weight.size(), chunks=chunks)
            paths[name] = (*path, key)
    plan = metadata.Metadata(state_dict_metadata=tensors, planner_data=paths, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(plan))
    return plan


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_of_a_distributed_checkpoint_are_put_together(parts: int, model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    write_plan(tmp_path, model.state_dict(), parts)
    assert same(tmp_path, model)


def test_what_torch_itself_saves_is_read(model: Transformer, tmp_path: Path) -> None:
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        content = {"model": model.state_dict(), "optimizer": {"exp_avg": torch.ones(2, 2)}, "step": 3}
        checkpoint.save(content, checkpoint_id=str(tmp_path / "dcp"))
    (tmp_path / "dcp" / "config.json").write_text(json.dumps(model.config.to_dict()))
    assert same(tmp_path / "dcp", model)


def test_a_plan_runs_nothing(model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    plan = write_plan(tmp_path, model.state_dict())
    plan.planner_data = Attack(str(tmp_path / "ran"))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(plan))
    with pytest.raises(CheckpointError, match="could run code; nothing was run"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_plans_that_lie_are_refused(model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    name = "model.decoder.embedding.token.weight"

    def refused(spoil: Callable[[metadata.Metadata], object], match: str) -> None:
        plan = write_plan(tmp_path, model.state_dict(), parts=2)
        spoil(plan)
        (tmp_path / ".metadata").write_bytes(pickle.dumps(plan))
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(tmp_path)

    def places(plan: metadata.Metadata) -> list[Any]:
        assert plan.storage_data is not None
        return [place for key, place in plan.storage_data.items() if key.fqn == name]

    def tensor(plan: metadata.Metadata) -> Any:
        return plan.state_dict_metadata[name]

    refused(lambda plan: setattr(places(plan)[0], "relative_path", "../x"), "no file beside it")
    refused(lambda plan: setattr(places(plan)[0], "length", 9), "cut short")
    refused(lambda plan: plan.storage_data.clear(), "no file beside it")
    refused(lambda plan: tensor(plan).chunks.pop(), "do not make up a tensor")
    refused(lambda plan: setattr(tensor(plan), "size", torch.Size([1 << 40, 16])), "do not make up a tensor")
    refused(lambda plan: setattr(tensor(plan).chunks[1], "offsets", torch.Size([500, 0])), "no file|outside")
    refused(lambda plan: setattr(plan, "storage_data", None), "says nothing of tensors")
    refused(lambda plan: plan.planner_data.update({name: ("model",)}), "as a tensor and as what holds tensors")
    write_plan(tmp_path, model.state_dict())
    whole = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged plan"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "method"),
    [("q_proj.qweight", "GPTQ or AWQ"), ("q_proj.weight_scale_inv", "fp8"), ("q.SCB", "bitsandbytes")],
)
def test_quantized_weights_are_refused_by_their_name(
    name: str, method: str, model: Transformer, tmp_path: Path
) -> None:
    weights = model.state_dict() | {name: torch.ones(2, 2)}
    with pytest.raises(CheckpointError, match=f"is quantized by {method}"):
        load_checkpoint(saved({"state_dict": weights}, model, tmp_path))
