"""What models are timed on: sizes, limits, the corpus, and what nobody can time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfm.bundle.manifest import Manifest, read_manifest
from tfm.errors import BundleError, InputError
from tfm.latency.workloads import corpus_of, model_works

LIMIT, V = 8, 12


@pytest.fixture
def manifest(make_bundle: Callable[..., Path]) -> Callable[..., Manifest]:
    return lambda kind, **changes: read_manifest(make_bundle(kind, **changes))


def test_every_batch_size_and_length(manifest: Callable[..., Manifest]) -> None:
    workloads = model_works(manifest("encoder"), [1, 3], [2, 5], 16)
    assert [(work.name, work.count, work.new_tokens) for work in workloads] == [
        ("1×2", 1, 0), ("1×5", 1, 0), ("3×2", 3, 0), ("3×5", 3, 0)
    ]  # fmt: skip
    for work in workloads:
        rows, tokens = map(int, work.name.split("×"))
        array = np.array(work.rows)
        assert array.shape == (rows, tokens)
        assert array.min() >= 0
        assert array.max() < V


def test_what_is_too_long_is_cut_once(manifest: Callable[..., Manifest]) -> None:
    assert [work.name for work in model_works(manifest("encoder"), [1], [4, 100, 200], 16)] == ["1×4", f"1×{LIMIT}"]


def test_a_decoder_has_room_for_what_follows(manifest: Callable[..., Manifest]) -> None:
    made = manifest("counter")
    (work,) = model_works(made, [2], [100], 3)
    assert (work.name, work.new_tokens) == (f"2×{LIMIT - 3}", 3)
    (work,) = model_works(made, [2], [100], 100)
    assert (work.name, work.new_tokens) == (f"2×{LIMIT // 2}", LIMIT // 2)


def test_an_encoder_decoder_has_two_limits(manifest: Callable[..., Manifest]) -> None:
    (work,) = model_works(manifest("copier"), [2], [100], 100)
    assert (work.name, work.new_tokens) == (f"2×{LIMIT}", LIMIT)


def test_works_are_the_same_each_time(manifest: Callable[..., Manifest]) -> None:
    made = manifest("encoder")
    assert model_works(made, [1, 8], [2, 5], 16) == model_works(made, [1, 8], [2, 5], 16)


def test_a_corpus_of_texts(manifest: Callable[..., Manifest]) -> None:
    work, about = corpus_of(manifest("encoder"), ["a b", "c"], 16)
    assert work is not None
    assert (list(work.texts), [list(row) for row in work.rows]) == (["a b", "c"], [[1, 4, 5, 2], [1, 6, 2]])
    assert (work.count, about) == (2, "2 texts")


def test_built_in_texts(manifest: Callable[..., Manifest]) -> None:
    work, about = corpus_of(manifest("encoder"), None, 16)
    assert work is not None
    assert (len(work.texts), work.count, about) == (128, 128, "128 sentences of built-in English")
    assert len({len(row) for row in work.rows}) > 1


def test_texts_of_another_language_become_random_rows(manifest: Callable[..., Manifest]) -> None:
    """The copier reads words of the letters a to h alone."""
    work, about = corpus_of(manifest("copier"), None, 5)
    assert work is not None
    if work.texts:  # of built-in words a few may be of these letters
        assert set("".join(work.texts)) <= set("abcdefgh")
    else:
        assert about == "64 rows of random ids, as built-in English is none of its language"
        assert {len(row) for row in work.rows} == set(range(1, LIMIT + 1))
    assert work.new_tokens == 5


def test_words_are_split(manifest: Callable[..., Manifest]) -> None:
    work, about = corpus_of(manifest("copier"), ["ab c", "dd"], 5)
    assert work is not None
    assert (list(work.texts), about) == (["ab", "c", "dd"], "3 words")


def test_a_text_that_must_not_be_seen(manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(InputError, match=r"text 2: .*'z'"):
        corpus_of(manifest("copier"), ["ab", "z"], 5)


def test_a_text_that_is_too_long(make_bundle: Callable[..., Path]) -> None:
    made = read_manifest(make_bundle("copier"))
    with pytest.raises(InputError, match="text 1: it has 9 tokens, and there is room for 8"):
        corpus_of(made, ["abcdefgha"], 5)


def test_no_texts_at_all(manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(InputError, match="there is no text"):
        corpus_of(manifest("encoder"), [], 5)


def without_tokenizer(folder: Path, toys: Any) -> Manifest:
    (folder / "tokenizer.json").unlink()
    toys.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    return read_manifest(folder)


def test_without_a_tokenizer(make_bundle: Callable[..., Path], toys: Any) -> None:
    made = without_tokenizer(make_bundle("encoder"), toys)
    work, about = corpus_of(made, None, 5)
    assert work is not None
    assert (work.texts, work.count, about) == ((), 128, "128 rows of random ids, as it has no tokenizer.json")
    with pytest.raises(BundleError, match=r"it has no tokenizer\.json"):
        corpus_of(made, ["a"], 5)


def test_images(manifest: Callable[..., Manifest]) -> None:
    values = {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 4, 4]}
    made = manifest("encoder", signature={"model": {"inputs": [values], "outputs": [], "max_length": {}}})
    workloads = model_works(made, [1, 2], [16], 16)
    assert [work.name for work in workloads] == ["1", "2"]
    assert [work.arrays["pixel_values"].shape for work in workloads] == [(1, 3, 4, 4), (2, 3, 4, 4)]
    assert corpus_of(made, None, 16) == (None, "this bundle reads no texts")


def test_images_of_unknown_size(manifest: Callable[..., Manifest]) -> None:
    values = {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}
    made = manifest("encoder", signature={"model": {"inputs": [values], "outputs": [], "max_length": {}}})
    with pytest.raises(InputError, match="nobody knows how large height, width should be"):
        model_works(made, [1], [16], 16)


def test_a_module_is_run_on_its_golden_inputs(make_bundle: Callable[..., Path], toys: Any) -> None:
    folder = toys.add_golden(make_bundle("encoder"))
    values = json.loads((folder / "manifest.json").read_text()) | {"kind": "module"}
    toys.write_manifest(folder, values)
    small, large = model_works(read_manifest(folder), [5], [7], 16)
    assert (small.name, large.name) == ("1×1 + 1×1 + 1×1", "2×3 + 2×3 + 2×3")
    np.testing.assert_array_equal(large.arrays["input_ids"], [[4, 5, 6], [7, 0, 0]])
    assert set(small.arrays) == {"input_ids", "attention_mask", "token_type_ids"}


def test_a_module_without_golden_inputs(manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(InputError, match=r"has no golden\.npz"):
        model_works(manifest("tower"), [1], [2], 16)
