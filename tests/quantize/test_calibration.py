"""Calibration data: what is read, how it is fed, what is refused and where, and that it is streamed."""

import contextlib
import dataclasses
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import toys
from tfm.bundle.manifest import Manifest, Signature, TensorSpec, read_manifest
from tfm.errors import BundleError, CalibrationError, InputError
from tfm.latency.text import english_words
from tfm.quantize.calibration.files import read_samples
from tfm.quantize.calibration.read import Calibration, read_calibration
from tfm.quantize.calibration.samples import is_batched, split_of
from tfm.runtime import load

# Hand-made bundles that know the letters a … h as ids 4 … 11 and take at most 8 of them; tests are no package.
BOS, LIMIT = toys.BOS, toys.LIMIT

BOTH = 200  # samples of either half, of at most as many


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Manifest]:
    """The manifest of a toy bundle, each written once."""
    made: dict[str, Manifest] = {}

    def get(kind: str) -> Manifest:
        if kind not in made:
            made[kind] = read_manifest(toys.write_bundle(tmp_path_factory.mktemp("toy") / kind, kind))
        return made[kind]

    return get


def spec(name: str, *shape: int | str, dtype: str = "float32", below: int | None = None) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, below=below)


@pytest.fixture
def arrays_of(toy: Callable[[str], Manifest]) -> Callable[..., Manifest]:
    """The manifest of a module with these inputs."""

    def make(*inputs: TensorSpec, kind: str = "module", **max_length: int) -> Manifest:
        signature = {"model": Signature(inputs=inputs, outputs=(), max_length=max_length)}
        return dataclasses.replace(toy("encoder"), kind=kind, signature=signature)

    return make


def rows_of(calibration: Calibration, role: str = "model") -> list[list[int]]:
    """The ids of every sample, padding left out, in the order of the batches."""
    rows = []
    for feeds in calibration.batches(role, 4):
        rows += [ids[mask == 1].tolist() for ids, mask in zip(feeds["input_ids"], feeds["attention_mask"], strict=True)]
    return rows


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read_both(source: Path, manifest: Manifest) -> list[list[int]]:
    """The rows of both halves, sorted; a half may have none."""
    rows: list[list[int]] = []
    for split in ("calibration", "held-out"):
        try:
            role = "encoder" if manifest.kind == "encoder-decoder" else "model"
            rows += rows_of(read_calibration(source, manifest, count=BOTH, split=split), role)
        except CalibrationError as error:
            if "gives no sample" not in str(error):
                raise
    return sorted(rows)


TEXTS = [
    " ".join(text) for text in ("a", "b", "ab", "ba", "abc", "cab", "dad", "fade", "decade", "beef", "cafe", "hedge")
]
ROWS = sorted([1, *(4 + ord(letter) - ord("a") for letter in text.split()), 2] for text in TEXTS)


# ------------------------------------------------ what is read


def test_texts_of_every_kind_of_file(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    manifest = toy("encoder")
    assert read_both(write(tmp_path / "a.txt", *TEXTS), manifest) == ROWS
    objects = [{"text": text} if index % 2 else {"input_ids": ids(text), "id": 3} for index, text in enumerate(TEXTS)]
    assert read_both(write(tmp_path / "a.jsonl", *objects), manifest) == ROWS
    padded = np.zeros((len(TEXTS), LIMIT), np.int64)
    for row, text in zip(padded, TEXTS, strict=True):
        row[: len(ids(text))] = ids(text)
    np.savez(tmp_path / "a.npz", input_ids=padded, attention_mask=(padded > 0).astype(np.int64))
    assert read_both(tmp_path / "a.npz", manifest) == ROWS
    np.savez_compressed(tmp_path / "a.npz", input_ids=padded)  # no mask: all is real
    assert read_both(tmp_path / "a.npz", manifest) == sorted(padded.tolist())


def ids(text: str) -> list[int]:
    return [1, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]


def test_a_folder_gives_of_each_file_in_turn(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b0", "b1", "b2")
    write(tmp_path / "a.txt", "a0")
    write(tmp_path / "c.jsonl", {"text": "c0"}, {"text": "c1"})
    (tmp_path / ".hidden").write_text("x")
    assert [content for _, content in read_samples(tmp_path)] == ["a0", "b0", "c0", "b1", "c1", "b2"]


def test_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffé a\r\nb\u2028c\nlast".encode())
    assert list(read_samples(tmp_path / "a.txt")) == [
        (f"{tmp_path}/a.txt, line 1", "é a"),
        (f"{tmp_path}/a.txt, line 2", "b\u2028c"),
        (f"{tmp_path}/a.txt, line 3", "last"),
    ]


def test_words_of_a_line_are_samples_where_a_bundle_reads_words(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "fade  cafe", "bad")
    wanted = sorted([4 + ord(letter) - ord("a") for letter in word] for word in ("fade", "cafe", "bad"))
    assert read_both(source, toy("copier")) == wanted


# ------------------------------------------------ the two halves


def test_the_halves_share_no_text(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), size=rng.integers(1, 7))) for _ in range(400)]
    source = write(tmp_path / "a.txt", *texts, *reversed(texts))
    halves = [
        rows_of(read_calibration(source, toy("encoder"), count=1000, split=s)) for s in ("calibration", "held-out")
    ]
    first, second = ({tuple(row) for row in half} for half in halves)
    assert not first & second
    assert first | second == {tuple(ids(text)) for text in texts}
    assert 100 < len(first) < len({*texts}) - 100  # 400 coins: 100 is ten standard deviations off
    again = rows_of(read_calibration(source, toy("encoder"), count=1000))
    assert again == halves[0]


def test_the_half_depends_on_all_that_is_read() -> None:
    samples: list[dict[str, Any]] = [{"x": np.array([i])} for i in range(64)]
    assert {split_of(sample) for sample in samples} == {"calibration", "held-out"}
    assert [split_of(s) for s in samples] != [split_of({"y": s["x"]}) for s in samples]
    assert [split_of(s) for s in samples] != [split_of({"x": s["x"][None]}) for s in samples]
    assert split_of({"a": samples[0]["x"], "b": samples[1]["x"]}) == split_of(
        {"b": samples[1]["x"], "a": samples[0]["x"]}
    )


def test_an_empty_half_is_refused(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "a")
    ours = split_of({"input_ids": np.array(ids("a")), "token_type_ids": np.zeros(3, np.int64)})
    (other,) = {"calibration", "held-out"} - {ours}
    assert len(read_calibration(source, toy("encoder"), split=ours)) == 1
    with pytest.raises(CalibrationError, match=rf"a.txt gives no sample for the {other} half"):
        read_calibration(source, toy("encoder"), split=other)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="there is no half 'test'; the nearest is"):
        read_calibration(source, toy("encoder"), split="test")  # type: ignore[arg-type]


# ------------------------------------------------ what is fed


def test_an_encoder_is_fed_as_embed_does(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    calibration = read_calibration(write(tmp_path / "a.txt", *TEXTS), toy("encoder"))
    model = load(toy("encoder").folder, provider="cpu", precision="fp32", threads=1)
    widths = []
    for feeds in calibration.batches("model", 2):
        assert list(feeds) == ["input_ids", "attention_mask", "token_type_ids"]
        assert not feeds["token_type_ids"].any()
        assert len(feeds["input_ids"]) <= 2
        model.run(**feeds)  # which checks them
        assert (feeds["input_ids"][feeds["attention_mask"] == 0] == 0).all()
        widths.append(feeds["input_ids"].shape[1])
    assert widths == sorted(widths)
    assert len(calibration) == len(rows_of(calibration))
    assert calibration.description == f"{len(calibration)} samples of a.txt"


def test_segments_are_kept(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"input_ids": rng.integers(4, 12, (9, 5)), "attention_mask": np.ones((9, 5), np.int64)}
    arrays["attention_mask"][:, 3:] = rng.integers(0, 2, (9, 2))
    arrays["token_type_ids"] = rng.integers(0, 2, (9, 5))
    np.savez(tmp_path / "a.npz", **arrays)
    pairs = set()
    for split in ("calibration", "held-out"):
        for feeds in read_calibration(tmp_path / "a.npz", toy("encoder"), split=split).batches("model", 4):
            for row, mask, types in zip(*feeds.values(), strict=True):
                pairs.add((*row[mask == 1], *types[mask == 1]))
    real = arrays["attention_mask"] == 1
    assert pairs == {(*arrays["input_ids"][i, real[i]], *arrays["token_type_ids"][i, real[i]]) for i in range(9)}


def test_a_decoder_starts_from_an_empty_cache(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    lines = [{"input_ids": list(range(4, 4 + length))} for length in range(1, 9)]
    calibration = read_calibration(write(tmp_path / "a.jsonl", *lines), toy("counter"))
    model = load(toy("counter").folder, provider="cpu", threads=1)
    count = 0
    for feeds in calibration.batches("model", 3):
        assert len(feeds["input_ids"]) == 1  # alone: nothing marks padding
        assert feeds["past_key_values.0.key"].shape == (1, 1, 0, 1)
        assert feeds["attention_mask"].shape == feeds["input_ids"].shape
        assert feeds["attention_mask"].all()
        assert feeds["position_ids"].tolist() == [list(range(feeds["input_ids"].shape[1]))]
        assert feeds["num_logits_to_keep"] == 0  # nothing goes unjudged
        said = model.run(**feeds)["logits"].argmax(-1)  # UNK wherever a place is wrong
        following = np.where(feeds["input_ids"] == 11, toys.EOS, feeds["input_ids"] + 1)
        assert (said == following).all()
        count += 1
    assert count == len(calibration) > 0


def test_a_decoder_is_taught_by_what_its_model_generates(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    words = ["a", "bad", "cab", "fade", "beef", "decade", "hag", "head", "faded", "h", "gab", "abba"]
    calibration = read_calibration(write(tmp_path / "a.txt", *words), toy("copier"))
    sources = rows_of(calibration, "encoder")
    assert len(sources) > 3
    first, second = (list(calibration.batches("decoder", 4)) for _ in range(2))
    seen = []
    for feeds, same in zip(first, second, strict=True):
        assert list(feeds) == [spec.name for spec in toy("copier").signature["decoder"].inputs]
        for name in feeds:
            np.testing.assert_array_equal(feeds[name], same[name])
        assert feeds["past_key_values.0.decoder.key"].shape[2] == 0
        assert feeds["decoder_attention_mask"].shape == feeds["input_ids"].shape
        assert feeds["decoder_attention_mask"].all()
        assert feeds["num_logits_to_keep"] == 0
        keys_BT = feeds["past_key_values.0.encoder.key"][:, 0, :, 0]  # the toy's keys are its source's ids
        for row, keys, mask in zip(feeds["input_ids"], keys_BT, feeds["encoder_attention_mask"], strict=True):
            source = keys[mask == 1].tolist()
            assert row[: 1 + len(source)].tolist() == [BOS, *source]
            assert not row[1 + len(source) :].any()
            seen.append(source)
        np.testing.assert_array_equal(feeds["past_key_values.0.encoder.value"][:, 0, :, 0], -keys_BT)
    assert seen == sources


def test_what_is_generated_ends_where_the_model_does(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    """Sources of 8 ids, the most: with the start token, what is generated has one more."""
    manifest = toy("copier")
    assert manifest.generation is not None
    manifest = dataclasses.replace(manifest, generation=dataclasses.replace(manifest.generation, max_new_tokens=50))
    calibration = read_calibration(write(tmp_path / "a.txt", "abcdefgh", "hgfedcba", "aabbccdd", "habcdefg"), manifest)
    for feeds in calibration.batches("decoder", 1):
        assert feeds["input_ids"].shape == (1, LIMIT)


def test_without_generation_settings_targets_are_random_and_said_to_be(
    toy: Callable[[str], Manifest], tmp_path: Path
) -> None:
    manifest = dataclasses.replace(toy("copier"), generation=None)
    lines = [{"input_ids": [letter, 4]} for letter in range(4, 12)]
    calibration = read_calibration(write(tmp_path / "a.jsonl", *lines), manifest)
    assert calibration.description.endswith("with random targets, as the bundle does not say how to generate")
    assert [one.description.count("with random targets") for one in calibration.divided(1)] == [1, 1]
    for feeds in calibration.batches("decoder", 3):
        assert feeds["input_ids"].shape == (len(feeds["encoder_attention_mask"]), 2)


def test_a_decoder_needs_the_float32_graphs_as_they_were(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    manifest, source = toy("copier"), write(tmp_path / "a.txt", "a bad cab fade beef")
    without = dataclasses.replace(manifest, graphs={"int8": manifest.graphs["fp32"]})
    with pytest.raises(CalibrationError, match="has no fp32 graphs"):
        list(read_calibration(source, without).batches("decoder", 2))
    files = {**manifest.files, "onnx/encoder_model.onnx": dataclasses.replace(manifest.files["tokenizer.json"])}
    altered = dataclasses.replace(manifest, files=files)
    with pytest.raises(BundleError, match=r"onnx/encoder_model.onnx was altered"):
        list(read_calibration(source, altered).batches("decoder", 2))


def test_roles_and_sizes_are_checked(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    calibration = read_calibration(write(tmp_path / "a.txt", *TEXTS), toy("encoder"))
    with pytest.raises(CalibrationError, match="has no 'decoder' graph; the nearest is 'model'"):
        next(calibration.batches("decoder", 2))
    for bad in (0, True, 1.5):
        with pytest.raises(InputError, match="batch_size must be an integer of at least 1"):
            next(calibration.batches("model", bad))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="count must be an integer of at least 1"):
            read_calibration(None, toy("encoder"), count=bad)  # type: ignore[arg-type]


# ------------------------------------------------ arrays


def test_arrays_are_stacked_by_shape(arrays_of: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = arrays_of(spec("pixel_values", "batch", 2, "h"), kind="encoder", h=9)
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((12, 2, size)).astype(np.float32) for size in (3, 5)]
    for index, part in enumerate(parts):
        np.savez(tmp_path / f"{index}.npz", pixel_values=part)
    found: list[bytes] = []
    for split in ("calibration", "held-out"):
        for feeds in read_calibration(tmp_path, manifest, split=split).batches("model", 5):
            assert feeds["pixel_values"].shape[:2] == (min(5, len(feeds["pixel_values"])), 2)
            found += [row.tobytes() for row in feeds["pixel_values"]]
    assert sorted(found) == sorted(row.tobytes() for part in parts for row in part)


def test_a_graph_without_a_batch_axis_takes_one_at_a_time(arrays_of: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = arrays_of(spec("x", "rows", 3), spec("table", 2))
    assert not is_batched(manifest.signature["model"])
    x, table = np.arange(60, dtype=np.float32).reshape(5, 4, 3), np.ones((5, 2), np.float32)
    np.savez(tmp_path / "a.npz", x=x, table=table)
    found = [
        feeds["x"]
        for split in ("calibration", "held-out")
        for feeds in read_calibration(tmp_path / "a.npz", manifest, split=split).batches("model", 4)
    ]
    assert sorted(array[0, 0] for array in found) == [0, 12, 24, 36, 48]
    assert all(array.shape == (4, 3) for array in found)


@pytest.mark.parametrize(
    ("shapes", "batched"),
    [
        ([("batch", 3), ("batch", "s")], True),
        ([("batch", 3), (3,)], False),
        ([("batch", "batch")], False),
        ([("s", "batch"), ("batch",)], False),
        ([(4, 3)], False),
        ([()], False),
    ],
)
def test_is_batched(shapes: list[tuple[Any, ...]], batched: bool) -> None:
    inputs = tuple(spec(f"x{index}", *shape) for index, shape in enumerate(shapes))
    assert is_batched(Signature(inputs=inputs, outputs=(), max_length={})) is batched


def test_a_module_that_reads_only_ids_reads_text(arrays_of: Callable[..., Manifest], tmp_path: Path) -> None:
    inputs = [
        spec("input_ids", "b", "s", dtype="int64", below=12),
        spec("attention_mask", "b", "s", dtype="int64", below=2),
    ]
    manifest = arrays_of(*inputs, s=8)
    assert read_both(write(tmp_path / "a.txt", *TEXTS), manifest) == ROWS
    other = arrays_of(*inputs, spec("x", "b", 3), s=8)
    with pytest.raises(CalibrationError, match=r"a.txt, line 1 is a text, but this bundle takes .*, x; give an .npz"):
        read_calibration(tmp_path / "a.txt", other)


# ------------------------------------------------ what is built in


def test_built_in_words_and_sentences(toy: Callable[[str], Manifest]) -> None:
    calibration = read_calibration(None, toy("copier"), count=2)
    assert calibration.description == "2 built-in English words"
    vocabulary = {word for word in english_words(10_000) if set(word) <= set("abcdefgh")}
    assert {"".join(chr(ord("a") + i - 4) for i in row) for row in rows_of(calibration, "encoder")} <= vocabulary
    held = read_calibration(None, toy("copier"), count=2, split="held-out")
    assert held.description == "2 built-in English words, held out"
    assert not {*map(tuple, rows_of(held, "encoder"))} & {*map(tuple, rows_of(calibration, "encoder"))}
    manifest = dataclasses.replace(toy("encoder without segments"))
    long = {"model": dataclasses.replace(manifest.signature["model"], max_length={"sequence": 400})}
    sentences = read_calibration(None, dataclasses.replace(manifest, signature=long), count=100)
    assert sentences.description == "100 built-in English sentences"


def test_without_a_tokenizer_ids_are_random_and_said_to_be(toy: Callable[[str], Manifest]) -> None:
    files = {name: file for name, file in toy("encoder").files.items() if name != "tokenizer.json"}
    manifest = dataclasses.replace(toy("encoder"), files=files)
    calibration = read_calibration(None, manifest, count=50)
    assert calibration.description == "50 rows of random ids, a poor stand-in for real ones"
    rows = rows_of(calibration)
    assert {len(row) for row in rows} == set(range(1, LIMIT + 1))
    assert {i for row in rows for i in row} == set(range(12))


def test_random_arrays_fit_the_signature(arrays_of: Callable[..., Manifest]) -> None:
    inputs = (
        spec("x", "batch", "t", 3),
        spec("mask", "batch", "p + t", dtype="int64", below=2),
        spec("flag", "batch", dtype="bool"),
        spec("past", "batch", "p", 2),
        spec("kind", "batch", dtype="int32", below=7),
    )
    calibration = read_calibration(None, arrays_of(*inputs, **{"p + t": 20}), count=40)
    assert calibration.description == "40 random inputs, a poor stand-in for real ones"
    (feeds,) = calibration.batches("model", 64)
    assert {name: (array.shape, str(array.dtype)) for name, array in feeds.items()} == {
        "x": ((40, 10, 3), "float32"),
        "mask": ((40, 20), "int64"),
        "flag": ((40,), "bool"),
        "past": ((40, 10, 2), "float32"),
        "kind": ((40,), "int32"),
    }
    assert feeds["mask"].all()
    assert feeds["flag"].all()
    assert set(feeds["kind"].tolist()) == set(range(7))
    again = read_calibration(None, arrays_of(*inputs, **{"p + t": 20}), count=40)
    np.testing.assert_array_equal(next(again.batches("model", 64))["x"], feeds["x"])


# ------------------------------------------------ what is refused, and where


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a\n\nb\n", "a.txt, line 2 is empty; remove it"),
        ("a.txt", b"a\n \t\n", "a.txt, line 2 is empty"),
        ("a.txt", b"a\nb \xff\n", "a.txt, line 2 is not UTF-8"),
        ("a.txt", b"a\nb b b b b b b\n", "a.txt, line 2: sequence is 9, but this model takes at most 8"),
        ("a.txt", b"a\n" + b"b" * (1 << 20) + b"b\n", "a.txt, line 2 is longer than 1048576 bytes"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1 is not JSON"),
        ("a.jsonl", b'["a"]\n', 'a.jsonl, line 1 must be an object with either "text" or "input_ids"'),
        ("a.jsonl", b'{"txt": "a"}\n', 'must be an object with either "text" or "input_ids"'),
        ("a.jsonl", b'{"text": "a", "input_ids": [4]}\n', 'must be an object with either "text" or "input_ids"'),
        ("a.jsonl", b'{"text": 3}\n', "line 1: its text must be a string that is not empty"),
        ("a.jsonl", b'{"text": " "}\n', "line 1: its text must be a string that is not empty"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: the text .* is not valid Unicode"),
        ("a.jsonl", b'{"input_ids": []}\n', "line 1: its input_ids must be a list of integers that is not empty"),
        ("a.jsonl", b'{"input_ids": [4, NaN]}\n', "its input_ids must be a list of integers"),
        ("a.jsonl", b'{"input_ids": [4, true]}\n', "its input_ids must be a list of integers"),
        ("a.jsonl", b'{"input_ids": [4.0]}\n', "its input_ids must be a list of integers"),
        ("a.jsonl", b'{"input_ids": "abc"}\n', "its input_ids must be a list of integers"),
        ("a.jsonl", b'{"input_ids": [[4]]}\n', "its input_ids must be a list of integers"),
        ("a.jsonl", b'{"input_ids": [4, 12]}\n', r"line 1: input_ids\[0, 1\] is 12; ids must be in \[0, 12\)"),
        ("a.jsonl", b'{"input_ids": [-1]}\n', r"line 1: input_ids\[0, 0\] is -1; ids must be in"),
        ("a.jsonl", b'{"input_ids": [99999999999999999999]}\n', "line 1: input_ids is"),
        ("a.jsonl", b'{"input_ids": [18446744073709551615]}\n', "line 1: input_ids is"),
        (
            "a.jsonl",
            b'{"input_ids": [4, 4, 4, 4, 4, 4, 4, 4, 4]}\n',
            "line 1: sequence is 9, but this model takes at most 8",
        ),
        ("a.csv", b"a\n", "a.csv is of no known kind; give a .txt, .jsonl, .npz file"),
        ("a.txt", b"", "a.txt holds no sample"),
        ("a.npz", b"", "a.npz cannot be read as .npz"),
        ("a.npz", b"PK\x03\x04 no zip", "a.npz cannot be read as .npz"),
    ],
)
def test_malformed_files(
    name: str, content: bytes, message: str, toy: Callable[[str], Manifest], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_calibration(tmp_path / name, toy("encoder"))
    with pytest.raises(CalibrationError, match=message):  # in a folder as well
        read_calibration(tmp_path, toy("encoder"))


def test_files_that_are_not_there(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"b.txt is not there; give a .txt, .jsonl, .npz file"):
        read_calibration(tmp_path / "b.txt", toy("encoder"))
    with pytest.raises(CalibrationError, match="is an empty folder; put the files"):
        read_calibration(tmp_path, toy("encoder"))
    (tmp_path / "a").mkdir()
    with pytest.raises(CalibrationError, match="a is a folder within a folder"):
        read_calibration(tmp_path, toy("encoder"))


def test_texts_that_the_model_cannot_read(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "bad", "bax")
    with pytest.raises(
        CalibrationError, match=r"a.txt, line 2: 'x' in the text 'bax' \(at 2\) is not in the model's voc"
    ):
        read_both(source, toy("copier"))
    files = {name: file for name, file in toy("encoder").files.items() if name != "tokenizer.json"}
    with pytest.raises(
        CalibrationError, match=r"a.txt, line 1: .* has no tokenizer.json, so it takes no texts; give input_ids"
    ):
        read_calibration(source, dataclasses.replace(toy("encoder"), files=files))


IDS = np.full((3, 5), 4)
MASK = np.ones((3, 5), np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_id": IDS}, "a.npz, sample 0: there is no input 'input_id'; the nearest is 'input_ids'"),
        ({"attention_mask": MASK}, "sample 0: the input 'input_ids' is missing"),
        ({"input_ids": IDS, "x": IDS}, "sample 0: there is no input 'x'"),
        ({"input_ids": IDS.astype(np.int32)}, "sample 0: input_ids is int32, but must be int64"),
        ({"input_ids": IDS.astype(">i8")}, "sample 0: input_ids is >i8 in the other byte order"),
        ({"input_ids": IDS.astype(float)}, "sample 0: input_ids is float64, but must be int64"),
        ({"input_ids": IDS.astype("U3")}, "sample 0: input_ids is <U3, but must be int64"),
        ({"input_ids": IDS[0]}, "sample 0: .* must have 2 dimensions"),
        ({"input_ids": IDS[None]}, "sample 0: .* must have 2 dimensions"),
        ({"input_ids": np.array(4)}, r"input_ids.npy has shape \(\); its first axis must count samples"),
        ({"input_ids": IDS[:, :0]}, r"sample 0: input_ids has shape \(1, 0\): sequence must be at least 1"),
        ({"input_ids": np.full((3, 9), 4)}, "sample 0: sequence is 9, but this model takes at most 8"),
        ({"input_ids": np.array([[4, 5], [4, 12]])}, r"sample 1: input_ids\[0, 1\] is 12"),
        ({"input_ids": IDS, "attention_mask": MASK[:, 1:]}, "sample 0: attention_mask has shape"),
        ({"input_ids": IDS, "attention_mask": MASK[1:]}, "a.npz: the first axis counts samples, but its sizes differ"),
        ({"input_ids": IDS, "attention_mask": 2 * MASK}, r"sample 0: attention_mask\[0, 0\] is 2"),
        ({"input_ids": IDS, "attention_mask": 0 * MASK}, "sample 0 is empty: its attention_mask has no 1"),
        ({"input_ids": IDS[:0]}, "a.npz holds no sample"),
        ({}, "a.npz holds no arrays"),
        ({"input_ids": IDS.astype(object)}, "input_ids.npy holds objects, which only pickle reads"),
        ({"input_ids": np.zeros(3, [("日", int)])}, "input_ids.npy holds records"),
        ({"input_ids": np.asfortranarray(IDS)}, "input_ids.npy is stored column by column"),
    ],
)
def test_malformed_arrays(
    arrays: dict[str, np.ndarray], message: str, toy: Callable[[str], Manifest], tmp_path: Path
) -> None:
    with (
        pytest.warns(UserWarning, match="Stored array in format 3.0")
        if "records" in message
        else contextlib.nullcontext()
    ):
        np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CalibrationError, match=message):
        read_both(tmp_path / "a.npz", toy("encoder"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(bad: float, arrays_of: Callable[..., Manifest], tmp_path: Path) -> None:
    x = np.zeros((3, 2, 4), np.float32)
    x[2, 1, 3] = bad
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(CalibrationError, match=rf"a.npz, sample 2: x\[1, 3\] is {bad}; give finite numbers only"):
        read_both(tmp_path / "a.npz", arrays_of(spec("x", "batch", 2, 4)))


class Malice:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('a pickle was run')",))


def test_pickles_are_not_run(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=np.array([Malice()], object))
    with pytest.raises(CalibrationError, match="holds objects, which only pickle reads"):
        read_calibration(tmp_path / "a.npz", toy("encoder"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("input_ids.npy", pickle.dumps(Malice()))
    with pytest.raises(CalibrationError, match=r"cannot be read as .npz"):
        read_calibration(tmp_path / "a.npz", toy("encoder"))


ANYTHING = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tries(source: Path, manifest: Manifest) -> None:
    """Only errors of ours may come out, and they name the file."""
    fault = None
    try:
        for feeds in read_calibration(source, manifest).batches("model", 2):
            assert feeds["input_ids"].min() >= 0
            assert feeds["input_ids"].max() < 12
            assert 1 <= feeds["input_ids"].shape[1] <= LIMIT
    except CalibrationError as error:
        fault = str(error)
    assert fault is None or str(source) in fault


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "input_ids", "x"]), inner),
    max_leaves=8,
)


@given(lines=st.lists(JSON.map(json.dumps) | st.text(max_size=20), max_size=5))
@ANYTHING
def test_no_line_of_json_gives_another_error(lines: list[str], toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    tries(tmp_path / "a.jsonl", toy("encoder"))


@given(content=st.binary(max_size=60) | st.text("abc \n\r\t", max_size=60).map(str.encode))
@ANYTHING
def test_no_text_gives_another_error(content: bytes, toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    tries(tmp_path / "a.txt", toy("encoder"))


@given(data=st.data())
@ANYTHING
def test_no_damage_to_an_archive_gives_another_error(
    data: st.DataObject, toy: Callable[[str], Manifest], tmp_path: Path
) -> None:
    np.savez(tmp_path / "good.npz", input_ids=np.full((4, 3), 5))
    content = bytearray((tmp_path / "good.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.npz").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    tries(tmp_path / "a.npz", toy("encoder"))


# ------------------------------------------------ streaming


def peak(work: Callable[[], object]) -> int:
    """The most bytes that Python and numpy hold at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.npz", "small.npz"])
def test_10_mb_are_never_all_in_memory(name: str, tmp_path: Path) -> None:
    if name == "a.txt":
        (tmp_path / name).write_bytes((b"x" * 99 + b"\n") * 100_000)
    elif name == "a.jsonl":
        (tmp_path / name).write_bytes((b'{"text": "' + b"x" * 87 + b'"}\n') * 100_000)
    else:
        save = np.savez if name == "a.npz" else np.savez_compressed
        save(tmp_path / name, x=np.zeros((2500, 1024), np.float32))
    found = 0

    def exhaust() -> None:
        nonlocal found
        for _, content in read_samples(tmp_path / name):
            found += len(content) if isinstance(content, str) else content["x"].nbytes

    assert peak(exhaust) < 1 << 20  # measured: at most 79 kB
    assert found > 8_000_000


def test_reading_ends_with_the_last_sample_wanted(toy: Callable[[str], Manifest], tmp_path: Path) -> None:
    """What comes after it is not even looked at: it is no UTF-8."""
    (tmp_path / "a.txt").write_bytes("\n".join(TEXTS).encode() + b"\n" + b"\xff" * 10_000_000)
    assert len(read_calibration(tmp_path / "a.txt", toy("encoder"), count=2)) == 2
    with pytest.raises(CalibrationError, match=f"line {len(TEXTS) + 1} is longer"):
        read_calibration(tmp_path / "a.txt", toy("encoder"))
