"""What decoders and encoder-decoders have in common: they generate.

Shapes: B batch, S new tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, overload

from tfm.errors import InputError

from .batches import check_count, length_limit
from .control import CancelToken, Control
from .generation.loop import Begun, continue_rows, search_beams
from .generation.sampling import Sampler
from .generation.settings import GenerationSettings
from .manifest import Signature
from .model import Model
from .session import Session


class Generator(Model):
    """A bundle that generates."""

    _batch_size = 16
    """How many go into the graphs at once, unless asked otherwise."""

    @property
    def _decoder(self) -> Session:
        """What gives the next token."""
        raise NotImplementedError

    @property
    def _reads(self) -> Signature:
        """Of the graph that inputs go into."""
        raise NotImplementedError

    def _begin(self, rows: list[list[int]], most: int, control: Control) -> Begun:
        """Read prompts or sources, to go on from with at most so many new tokens."""
        raise NotImplementedError

    @overload
    def generate(
        self,
        inputs: str | Sequence[str],
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> list[str]: ...
    @overload
    def generate(
        self,
        inputs: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> list[list[int]]: ...
    def generate(
        self,
        inputs: Any,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> list[Any]:
        """Generate: what follows each prompt, or what each source becomes. Greedily, unless the settings say otherwise.

        Args:
            inputs: Texts, or rows of token ids; one str is as a list of one.
            max_new_tokens: At most so many new tokens; None: as the manifest says. The model's limit may come first.
            batch_size: How many go into the graphs at once, at least 1; None: 16, or 64 into an encoder-decoder.
            cancel: Ends the call from elsewhere.
            timeout: Seconds after which the call ends.
            **settings: Of `GenerationSettings`: do_sample, temperature, top_k, top_p, seed, num_beams, stop, ….

        Returns:
            For each input its output, as text where the inputs are: without prompt, start and end tokens. With
            num_return_sequences > 1, a list of so many.

        Raises:
            InputError: An input that the model must not see, texts without a tokenizer, or a setting that is off.
            BundleError: The bundle does not say how to generate.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        control = Control(cancel, timeout)
        chosen, most = self._settings(max_new_tokens, settings)
        size = self._batch_size if batch_size is None else check_count("batch_size", batch_size)
        rows, are_texts = self._to_rows(inputs, self._reads)
        each = chosen.num_return_sequences
        results: list[list[list[int]]] = [[] for _ in rows]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            found = self._generate([rows[place] for place in places], places, chosen, most, control)
            for place, outputs in zip(places, found, strict=True):
                results[place] = outputs
        texts = [self._tokenizer.decode(outputs) for outputs in results] if are_texts else results
        return [outputs if each > 1 else outputs[0] for outputs in texts]

    def _generate(
        self, rows: list[list[int]], places: list[int], settings: GenerationSettings, most: int, control: Control
    ) -> list[list[list[int]]]:
        """Generate for one batch: per row its outputs, num_return_sequences of them."""
        each = settings.num_return_sequences
        if settings.num_beams > 1:
            found = search_beams(self._begin(rows, most, control), settings, self._ends, control)
            return [[tokens for tokens, _ in texts] for texts in found]
        begun = self._begin([row for row in rows for _ in range(each)], most, control)
        outputs: list[list[int]] = [[] for _ in begun.tokens]
        sampler = None
        if settings.do_sample:
            sampler = Sampler(settings.seed, [place * each + copy for place in places for copy in range(each)])
        for step in continue_rows(begun, settings, self._ends, sampler, None, control):
            for place, token in step:
                outputs[place].append(token)
        return [outputs[start : start + each] for start in range(0, len(outputs), each)]

    def _settings(self, max_new_tokens: int | None, settings: dict[str, Any]) -> tuple[GenerationSettings, int]:
        _, most = self._generation(max_new_tokens)
        try:
            chosen = GenerationSettings(max_new_tokens=most, **settings)
        except TypeError as error:
            raise InputError(f"{error}") from error
        return chosen, most

    def _limits(self, lengths: Sequence[int], most: int) -> list[int]:
        """How many new tokens rows may get; the last of them is not read, so it needs no place."""
        longest = length_limit(self._decoder.signature)
        return [most if longest is None else min(most, longest - length + 1) for length in lengths]

    @property
    def _ends(self) -> tuple[int, ...]:
        return self._generation(None)[0].eos_token_ids
