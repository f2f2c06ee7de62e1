"""Text of a form that is asked for: JSON of a schema, or what a regular expression matches, by llguidance.

At each step the tokens with which the text can no longer get that form are forbidden. What is left keeps its
likelihoods, so that the model still says what it would say, in that form.
"""

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tfm.errors import InputError

from ..inputs.checks import Array
from .logits import LogitsProcessor, Tokens

_FORBIDDEN = np.float32(-np.inf)
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Spaces as `json.dumps` has them. Were more allowed, a model that is lost would write spaces to the end."""


# A large schema takes a tenth of a second, at every call.
@functools.lru_cache(maxsize=16)
def grammar_of(json_schema: str | None, regex: str | None) -> str | None:
    """Read a schema or an expression as a grammar of llguidance; None: neither is asked for.

    Args:
        json_schema: The text of a JSON Schema; "{}" is any JSON.
        regex: The whole text matches it, in the syntax of Rust's regex, which has no look-around.

    Raises:
        InputError: llguidance is not installed; both are asked for; or it cannot read what is.
    """
    if json_schema is None and regex is None:
        return None
    if json_schema is not None and regex is not None:
        raise InputError("json_schema and regex exclude each other; leave one of them out")
    matcher = _llguidance().LLMatcher
    if json_schema is not None:
        name, grammar = "json_schema", matcher.grammar_from_json_schema(json_schema, defaults=_JSON)
    else:
        name, grammar = "regex", matcher.grammar_from_regex(regex)
    failed, messages = matcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise InputError(f"{name}: {' '.join(messages[0].split())}")
    return str(grammar)


def schema_text(given: str | Mapping[str, Any]) -> str:
    """Write a JSON Schema, a mapping or a text already, as a text.

    Raises:
        InputError: It is neither.
    """
    try:
        text = json.dumps(given) if isinstance(given, Mapping) else given
        schema = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"json_schema must be a JSON Schema, a mapping or its text: {error}") from error
    if not isinstance(schema, dict):
        raise InputError(f"json_schema must be an object, but is {text}")
    return text


def vocabulary_of(tokenizer: str, size: int, end_ids: Collection[int]) -> Any:
    """Read a tokenizer, a second for fifty thousand tokens, to be kept.

    Args:
        tokenizer: A tokenizer.json.
        size: V, the number of logits.
        end_ids: The tokens that end a text.

    Raises:
        InputError: llguidance is not installed, or does not know such a tokenizer.
    """
    try:
        return _llguidance().LLTokenizer(tokenizer, n_vocab=size, eos_token=sorted(end_ids))
    except ValueError as error:
        raise InputError(
            f"json_schema and regex need a tokenizer whose tokens are bytes, and this bundle's is another: {error}"
        ) from error


class Constraint:
    """What one call asks for, and how far each of its rows has come.

    Rows may leave and beams change places between steps, so a row is known by its new tokens, not by its number.
    """

    def __init__(self, vocabulary: Any, grammar: str, end_ids: Collection[int]) -> None:
        """Begin, with what `vocabulary_of` and `grammar_of` gave."""
        self._ends = end_ids
        self._begin = _llguidance().LLMatcher(vocabulary, grammar)
        self._reached: dict[tuple[int, ...], Any] = {}
        _check(self._begin)

    def after(self, prompt_lengths: Sequence[int]) -> LogitsProcessor:
        """Make the logits processor of rows whose prompts have so many tokens."""

        def process(tokens: Tokens, logits_BV: Array) -> Array:
            rows = [tuple(map(int, row[length:])) for row, length in zip(tokens, prompt_lengths, strict=True)]
            # Those of the step before are where this one goes on from; of none before them is needed.
            reached, before = {}, self._reached
            for row, logits_V in zip(rows, logits_BV, strict=True):
                # It waits for the others.
                if row and row[-1] in self._ends:
                    continue
                if row not in reached:
                    reached[row] = self._go_on(row, before)
                _forbid(logits_V, reached[row])
            self._reached = reached
            return logits_BV

        return process

    def _go_on(self, row: tuple[int, ...], before: Mapping[tuple[int, ...], Any]) -> Any:
        """Follow a row to its end, from the step before where that is known."""
        if row in before:
            return before[row]
        known = before.get(row[:-1])
        # Copied, as another beam may go on from the same tokens.
        matcher = (self._begin if known is None else known).deep_copy()
        matcher.consume_tokens(list(row if known is None else row[-1:]))
        _check(matcher)
        return matcher


def _forbid(logits_V: Array, matcher: Any) -> None:
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    _check(matcher)
    # One bit a token, the first token in the lowest bit; the mask is rounded up to whole words.
    allowed_V = np.unpackbits(mask, bitorder="little")[: len(logits_V)].astype(bool)
    if not (logits_V[allowed_V] > _FORBIDDEN).any():
        # As where an end is the only way on and min_new_tokens forbids it: the form was asked for too, and a text
        # that has it cannot go on.
        logits_V[allowed_V] = 0
    logits_V[~allowed_V] = _FORBIDDEN


def _check(matcher: Any) -> None:
    if matcher.is_error():
        raise InputError(f"the text cannot get the form that is asked for: {' '.join(matcher.get_error().split())}")


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise InputError(
            "json_schema and regex need the package llguidance, which is not installed: "
            "pip install 'tfm-export[structured]'"
        ) from error
    return llguidance
