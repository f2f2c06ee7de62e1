"""Tokens for masks, against Hugging Face's pipeline on tiny random checkpoints of several families."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")


@pytest.mark.parametrize("family", COMPARED["fill_mask"][2])
def test_as_the_pipeline(open_both: Callable[..., Any], family: str) -> None:
    both = open_both(family, "ForMaskedLM")
    assert both.ours.tasks == ("fill_mask",)
    mask = both.words.mask_token
    texts = [f"the capital of {mask} is paris", f"{mask}", f"who {mask}s in the small town, é 你 😀?"]
    theirs = transformers.pipeline("fill-mask", model=both.theirs, tokenizer=both.words)
    for found, text in zip(both.ours.fill_mask(texts), texts, strict=True):
        expected = theirs(text)
        assert [fill["token"] for fill in found] == [fill["token"] for fill in expected]
        assert [fill["token_str"] for fill in found] == [fill["token_str"] for fill in expected]
        assert [fill["sequence"] for fill in found] == [fill["sequence"] for fill in expected]
        np.testing.assert_allclose(
            [fill["score"] for fill in found], [fill["score"] for fill in expected], rtol=0, atol=1e-5
        )
