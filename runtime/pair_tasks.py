"""What an encoder makes of two texts that are read together: ranks of documents, answers, labels it has never seen.

Shapes: N candidate labels, L labels.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import Any, Unpack

import numpy as np

from tfm.bundle import brief
from tfm.errors import InputError

from .control import Control
from .inputs.batched import Batched, Inputs, StreamOptions, TaskOptions
from .inputs.batches import check_count
from .inputs.reader import Made
from .inputs.row import Row, is_pair, row_of
from .inputs.tokenizer import Strategy
from .model import as_iterator, as_list
from .tasks.base import Squash, kept, read_labels
from .tasks.masks import read_special
from .tasks.ranking import Ranked, read_score, scoring
from .tasks.spans import Answer, PartSpans, SpanSettings, best_answers, span_finding
from .tasks.zero_shot import ZeroShot, check_candidates, choose, entailing, entailment_of

_PART, _STRIDE = 384, 128
"""Tokens of a part of a context, and of what two parts share, unless asked otherwise: the pipeline's."""

_UNCUT = 1 << 30
"""Tokens that nothing is cut to."""


class PairTasks(Batched):
    """A model that reads two texts together: it ranks documents, finds answers, and says what a text entails."""

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        prompt: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> list[Ranked]:
        """Put documents in the order in which they answer a query, as sentence-transformers' CrossEncoder does.

        Args:
            query: A text.
            documents: Texts.
            top_k: How many of them, the best first; None: all.
            prompt: What goes in front of the query: the name of one of the bundle's prompts, or the words themselves;
                None: the one that the checkpoint names as its default, if any.
            **options: As of every task.

        Returns:
            {"index", "score", "text"} of each document, the best first: its place in `documents`, its score, which is
            the sigmoid of the model's one logit unless the checkpoint names another function, and itself.

        Raises:
            InputError: The bundle has no labels for texts, or several, or no tokenizer; or an input is no text.
        """
        self._require("rank", "it has no labels for pairs of texts, or several, and no one score")
        texts = as_list(documents)
        for place, text in enumerate([query, *texts]):
            if not isinstance(text, str):
                name = f"documents[{place - 1}]" if place else "query"
                raise InputError(f"{name} must be a text, but is {type(text).__name__}")
        if top_k is not None:
            check_count("top_k", top_k)
        # CrossEncoder puts its prompt in front of the query alone, never of a document.
        pairs = self._prompted([(query, text) for text in texts], prompt)
        scores = self._list(scoring(self._score), pairs, options)
        # Stable: of two documents with one score the first stays first, as in sentence-transformers.
        order = sorted(range(len(texts)), key=lambda place: -scores[place])
        return [{"index": place, "score": scores[place], "text": texts[place]} for place in order[:top_k]]

    def _prompted(self, inputs: Inputs, prompt: str | None) -> Iterator[Any]:
        """Put a prompt in front of texts, one after the other."""
        text = self.manifest.text
        if prompt is None:
            prompt = "" if text.default_prompt is None else text.default_prompt
        elif not isinstance(prompt, str):
            raise InputError(f"prompt must be the name of a prompt or its words, but is {prompt!r}")
        words = text.prompts.get(prompt, prompt)
        return (_behind(words, item) for item in as_iterator(inputs))

    def classify_zero_shot(
        self,
        inputs: str | Iterable[str],
        candidate_labels: str | Iterable[str],
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
        **options: Unpack[TaskOptions],
    ) -> list[ZeroShot]:
        """Label texts by labels that the model has never seen, as Hugging Face's zero-shot pipeline does.

        Args:
            inputs: Texts.
            candidate_labels: Labels to choose from, a list or one text with commas between them.
            hypothesis_template: What a text is asked to entail, with {} where the label goes.
            multi_label: Whether several may be right: then each has a score of its own; else scores add up to 1.
            **options: As of every task.

        Returns:
            For each text {"sequence", "labels", "scores"}, the likeliest label first.

        Raises:
            InputError: None of the model's labels is called entailment; or an input is no text.
        """
        texts, labels = as_list(inputs), check_candidates(candidate_labels, hypothesis_template)
        entailment = self._entailing()
        # One pair for each text and label. They are planned into batches together, so that many short
        # texts cost no more than a few long ones.
        items = [
            self._hypothesis(place, text, hypothesis_template.format(label))
            for place, text in enumerate(texts)
            for label in labels
        ]
        logits = self._list(entailing(), items, options)
        return [
            choose(text, labels, np.stack(logits[start : start + len(labels)]), entailment, multi_label=multi_label)
            for text, start in zip(texts, range(0, len(logits), len(labels)), strict=True)
        ]

    def classify_zero_shot_stream(
        self,
        inputs: str | Iterable[str],
        candidate_labels: str | Iterable[str],
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
        **options: Unpack[StreamOptions],
    ) -> Iterator[ZeroShot]:
        """Label a stream; yields and raises as `classify_zero_shot` does."""
        labels, entailment = check_candidates(candidate_labels, hypothesis_template), self._entailing()
        hypotheses = [hypothesis_template.format(label) for label in labels]
        texts = enumerate(as_iterator(inputs))
        # A generator of generators: a stream holds no more than its window of pairs.
        items = (self._hypothesis(place, text, words) for place, text in texts for words in hypotheses)
        found = self._stream(kept(entailing()), items, options)

        def results() -> Iterator[ZeroShot]:
            # Results come in the order of the pairs, and so all of one text's are next to each other.
            while group := list(itertools.islice(found, len(labels))):
                logits_NL = np.stack([logits for _, logits in group])
                yield choose(group[0][0], labels, logits_NL, entailment, multi_label=multi_label)

        return results()

    def answer(
        self,
        pairs: tuple[str, str] | Iterable[tuple[str, str]],
        top_k: int = 1,
        *,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        **options: Unpack[TaskOptions],
    ) -> list[list[Answer]]:
        """Answer questions by a part of a text each, as Hugging Face's question-answering pipeline does.

        Args:
            pairs: Each a question and its context, or one such pair. A context that is too long is read in parts.
            top_k: How many answers, the likeliest first.
            max_answer_len: Most tokens of an answer.
            max_seq_len: Tokens of a question and a part of its context; None: 384, or as many as the model reads.
            doc_stride: Tokens that a part shares with the one before; None: 128, or half a part's.
            handle_impossible_answer: Whether that there is no answer is one too, "".
            align_to_words: Whether answers are extended to the ends of their words.
            **options: As of every task.

        Returns:
            For each pair its answers, {"score", "start", "end", "answer"}: `context[start:end]` is it.

        Raises:
            InputError: The bundle answers no questions, or an input is no pair, or a question leaves no room.
        """
        self._require("answer", "it does not say where an answer starts and ends")
        settings = SpanSettings(
            top_k=check_count("top_k", top_k),
            most_tokens=check_count("max_answer_len", max_answer_len),
            may_be_none=handle_impossible_answer,
            whole_words=align_to_words,
        )
        # Two texts alone can only be one pair here: a list of two questions without contexts is no
        # input.
        given = [pairs] if is_pair(pairs) else as_list(pairs)
        for place, pair in enumerate(given):
            if not is_pair(pair):
                raise InputError(f"inputs[{place}] must be a question and its context, but is {brief(pair)}")
        # The parts of all contexts go into batches together, and find back to their pair by its
        # number.
        window = self._window(max_seq_len, doc_stride)
        parts = [part for place, pair in enumerate(given) for part in self._parts(place, pair, window)]
        found = self._list(kept(span_finding(settings, self._context_side, self._cls_id)), parts, options)
        of_pair: list[list[PartSpans]] = [[] for _ in given]
        for place, spans in found:
            of_pair[place].append(spans)
        return [
            best_answers(pair[1], self._context_side, spans, settings)
            for pair, spans in zip(given, of_pair, strict=True)
        ]

    async def answer_async(self, pairs: Any, **options: Any) -> list[list[Answer]]:
        """Do what `answer` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.answer, pairs, **options)

    async def classify_zero_shot_async(self, inputs: Any, candidate_labels: Any, **options: Any) -> list[ZeroShot]:
        """Do what `classify_zero_shot` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.classify_zero_shot, inputs, candidate_labels, **options)

    def _entailing(self) -> int:
        """Give the number of the label that says that a text entails another."""
        self._require("classify", "it has no labels for texts")
        labels = read_labels(self.manifest, int(self._outputs["logits"].shape[-1]))
        entailment = entailment_of(labels)
        if entailment is None:
            raise InputError(
                f"{self.manifest.folder} has no label that begins with 'entail', as models of natural language "
                f"inference have; its labels are {', '.join(labels[:8])}"
            )
        return entailment

    def _hypothesis(self, place: int, text: Any, words: str) -> Made:
        """A text beside what it may entail; of the two the text is cut."""
        if not isinstance(text, str):
            raise InputError(f"inputs[{place}] must be a text, but is {brief(text)}")

        def row(control: Control) -> Row:
            # Never the label: half of it would be another label.
            try:
                encoding = self._tokenizer.pair(text, words, strategy="only_first", control=control)
            except InputError:
                # The label alone is too long: neither is cut then, and what the model takes decides.
                encoding = self._tokenizer.pair(text, words, max_tokens=_UNCUT, control=control)
            return dataclasses.replace(row_of(encoding), place=place)

        return Made(row, text)

    def _window(self, max_seq_len: int | None, doc_stride: int | None) -> tuple[int, int]:
        """Tell how many tokens a part has, and how many of them it shares with the one before."""
        most = self._max_text_tokens() or _PART
        size = min(most, _PART) if max_seq_len is None else check_count("max_seq_len", max_seq_len)
        # An answer that lies across the end of a part lies whole in the next one, if it is no longer
        # than this.
        stride = min(size // 2, _STRIDE) if doc_stride is None else check_count("doc_stride", doc_stride)
        if size > most:
            raise InputError(f"max_seq_len is {size}, but this model reads at most {most} tokens")
        if stride > size:
            raise InputError(f"doc_stride is {stride}, and must not be more than max_seq_len, {size}")
        return size, stride

    def _parts(self, place: int, pair: tuple[str, str], window: tuple[int, int]) -> list[Made]:
        """Tokenize a question beside each part of its context."""
        question_first = self._context_side == 1
        # Models that are padded on the left have learned the context first.
        first, second = pair if question_first else pair[::-1]
        size, stride = window
        cut: Strategy = "only_second" if question_first else "only_first"
        try:
            encoding = self._tokenizer.pair(first, second, strategy=cut, max_tokens=size, stride=stride)
        except InputError as error:
            raise InputError(
                f"inputs[{place}]: of {size} tokens the question leaves no room for a part of the context that shares "
                f"{stride} with the one before; shorten it, or pass a smaller doc_stride ({error})"
            ) from error
        # All parts are read, so nothing is cut.
        parts = (encoding, *encoding.overflowing)
        rows = [dataclasses.replace(row_of(part, keep=True), cut=False, place=place) for part in parts]
        return [Made(partial(_as_it_is, row), place) for row in rows]

    @cached_property
    def _context_side(self) -> int:
        """Where the context stands: behind the question, unless the tokenizer pads on the left."""
        # The pipeline goes by the same key.
        value = (self._companions.json("tokenizer_config.json") or {}).get("padding_side")
        return 0 if value is not None and value.value == "left" else 1

    @cached_property
    def _cls_id(self) -> int | None:
        named = read_special(self._companions, "cls_token")
        # Where no file names it, it is called as in BERT or in RoBERTa.
        names = ("[CLS]", "<s>") if named is None else (named,)
        return next((found for name in names if (found := self._tokenizer.id_of(name)) is not None), None)

    async def rank_async(self, query: str, documents: Iterable[str], **options: Any) -> list[Ranked]:
        """Do what `rank` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.rank, query, documents, **options)

    @cached_property
    def _score(self) -> Squash:  # cached, since its file is read and compared with its digest
        return read_score(self._companions)


def _as_it_is(row: Row, control: Control) -> Row:
    del control
    return row


def _behind(words: str, item: Any) -> Any:
    """Put words in front of a text, or of the first text of a pair, as sentence-transformers does; ids stay."""
    if not words or not (isinstance(item, str) or is_pair(item)):
        return item
    return words + item if isinstance(item, str) else (words + item[0], item[1])
