"""What a user would notice: sentence embeddings, hidden states and generated tokens of a bundle against eager's.

The bundle is run through `tfm.runtime`, as an app runs it: cached, batched and padded. Eager runs uncached.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tfm.bundle import Gate
from tfm.errors import CalibrationError, VerificationError
from tfm.latency import english_sentences, english_words
from tfm.model import Transformer, TransformerConfig
from tfm.quantize import SampleReader, read_calibration, split_of
from tfm.runtime import PLAIN_SETTINGS, Decoder, Encoder, EncoderDecoder, Model, Module, Perceiver

from ..fast_path import no_fast_path
from ..generic.cached import CachedGraph
from ..generic.cached_pair import CachedTarget
from ..generic.cached_perceived import PerceivedTarget
from ..generic.graph import GenericGraph

_COUNT = 256
_PROMPTS = 64
_NOISES = 8
_CONTINUED = 24
"""Most tokens that are generated to compare them with transformers' own."""

FLOORS = {
    # Mean cosine of int8 encoders: chosen; MiniLM reaches 0.998, and 0.993 with nothing but plain dynamic products.
    ("cosine", "int8"): 0.997,
    ("cosine", "fp32"): 0.999999,
    # Share of tokens whose most likely successor is eager's. fp32 may differ only where two logits tie.
    ("top-1", "int8"): 0.95,
    ("top-1", "fp32"): 0.999,
    # Rounded node by node MiniLM has 0.9999992 on average.
    ("cosine", "fp16"): 0.99999,
    # Rounded node by node SmolLM2 keeps 127 of 128: KL 1.7e-5 is enough where two logits all but tie.
    ("top-1", "fp16"): 0.98,
    # Four bits: chosen; their budget is looser, too. SmolLM2 reaches 0.87 on text, in top-1.
    ("cosine", "int4"): 0.98,
    ("top-1", "int4"): 0.8,
    ("greedy", "int4"): 0.0,
    # Share of sources whose whole greedy output is eager's; for information but in fp32.
    ("greedy", "int8"): 0.0,
    ("greedy", "fp16"): 0.0,
    ("greedy", "fp32"): 0.99,
}
"""Least value of each measure, by precision."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One measure of a bundle against eager.

    Attributes:
        precision: The precision that ran.
        measure: "cosine", "top-1" or "greedy".
        value: In [0, 1] (cosine: [-1, 1]), 1 is a perfect match.
        floor: The least value allowed.
        count: How many vectors, tokens or outputs were compared.
        data: What on, in words.
    """

    precision: str
    measure: str
    value: float
    floor: float
    count: int
    data: str

    @property
    def passed(self) -> bool:
        """Whether something was compared and the value is high enough."""
        return self.count > 0 and self.value >= self.floor

    @property
    def gate(self) -> Gate:
        """Whether the bundle does the task as eager does."""
        reason = (
            f"{self.precision} {self.measure}: {self.value:.4f} over {self.count} {self.data}, less than {self.floor}"
        )
        return Gate(
            name=f"{self.precision} {self.measure}",
            stage="task",
            precision=self.precision,
            passed=self.passed,
            figure=self.value,
            limit=self.floor,
            reason="" if self.passed else reason,
        )


def measure_fidelity(eager: Transformer | GenericGraph, bundle: Model, max_drop: float | None = None) -> list[Fidelity]:
    """Compare a bundle with the eager model it came from.

    Args:
        eager: The model, in eval mode; for a bundle of any other module, its graph.
        bundle: The bundle, opened in the precision to judge.
        max_drop: The budget of int8 and int4; None: `FLOORS`, by which fp32 and fp16 are judged whatever it is.

    Returns:
        One or more measures, each with its verdict.
    """
    # A budget is the user's word on quantized graphs. fp32 and fp16 are to be exact whatever it is.
    found = _measure(eager, bundle)
    if max_drop is None or bundle.precision in ("fp32", "fp16"):
        return found
    floors = {"cosine": 1 - max_drop}  # a budget in nats is judged on distributions, not on what is likeliest
    return [dataclasses.replace(part, floor=floors.get(part.measure, 0.0)) for part in found]


def _measure(eager: Transformer | GenericGraph, bundle: Model) -> list[Fidelity]:
    # The measure is what the task uses: sentence vectors, next tokens, else the hidden states.
    if isinstance(eager, PerceivedTarget) and isinstance(bundle, Perceiver):
        return _written(eager, bundle)
    if isinstance(eager, CachedTarget) and isinstance(bundle, EncoderDecoder):
        return _generation(eager, bundle)
    if isinstance(eager, CachedGraph) and isinstance(bundle, Decoder):
        return [_next_tokens(eager, bundle), *_continued(eager, bundle)]
    if isinstance(eager, GenericGraph):
        return _outputs(eager, bundle)
    if isinstance(bundle, Encoder):
        return (
            [_embeddings(eager, bundle)]
            if eager.config.pooling and _reads_text(bundle)
            else [_hidden_states(eager, bundle)]
        )
    if isinstance(bundle, EncoderDecoder):
        return _generation(eager, bundle)
    if isinstance(bundle, Decoder):
        return [_next_tokens(eager, bundle)]
    raise VerificationError(f"a {type(bundle).__name__} cannot be compared with eager")


def eager_embeddings(eager: Transformer, rows: list[list[int]], batch_size: int = 16) -> npt.NDArray[np.float32]:
    """Compute sentence embeddings (B, D) by eager PyTorch, in padded batches."""
    parts = []
    for start in range(0, len(rows), batch_size):
        ids_BT, mask_BT = pad(rows[start : start + batch_size], eager.config.pad_token_id or 0)
        with torch.no_grad():
            # Right-padded (B, T) rows: the mask keeps padding out of attention and of the mean.
            parts.append(eager.pool(eager(ids_BT, src_mask=mask_BT), mask_BT).numpy())
    return np.concatenate(parts)


@torch.no_grad()
def eager_greedy(
    eager: Transformer, sources: list[list[int]], max_new_tokens: int, batch_size: int = 64
) -> list[list[int]]:
    """Decode greedily by eager PyTorch, running the whole target again for each token: slow, plain, without a cache.

    Args:
        eager: An encoder-decoder with bos_token_id and eos_token_id.
        sources: Source token ids, ragged.
        max_new_tokens: Most tokens to generate.
        batch_size: Sources at a time.

    Returns:
        Generated ids of each source, without the ids that start and end a sequence.
    """
    config, results = eager.config, []
    if config.bos_token_id is None or config.eos_token_id is None:
        raise VerificationError("the configuration has no bos_token_id or eos_token_id to generate with")
    for start in range(0, len(sources), batch_size):
        src_BT, mask_BT = pad(sources[start : start + batch_size], config.pad_token_id or 0)
        tgt_BS = torch.full((len(src_BT), 1), config.bos_token_id)
        cross = eager.decoder.project(eager.encoder(src_BT, mask_BT))
        for _ in range(min(max_new_tokens, config.max_positions)):
            # The whole target anew, (B, S) → the logits after its last token, [:, -1]. No cache is
            # the point: an oracle of the cached graphs must not share their code.
            next_B = eager.decoder(tgt_BS, cross=cross, cross_mask_BT=mask_BT)[0][:, -1].argmax(-1)
            tgt_BS = torch.cat([tgt_BS, next_B[:, None]], dim=1)
            if (tgt_BS[:, 1:] == config.eos_token_id).any(dim=1).all():  # BART starts with what ends
                break
        # What a row was given after its end, while others went on, is cut off.
        for row in tgt_BS[:, 1:].tolist():
            results.append(row[: row.index(config.eos_token_id)] if config.eos_token_id in row else row)
    return results


def pad(rows: list[list[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad ragged rows: ids (B, T) and mask (B, T), int64."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True)
    return ids, mask


def _embeddings(eager: Transformer, bundle: Encoder) -> Fidelity:
    # More than are needed: a hash puts about half of all texts into the half to quantize by.
    sentences = held_out(bundle, english_sentences(10_000))
    if not sentences:
        return _hidden_states(eager, bundle)
    # The bundle's tokenizer for both: what is compared is the model.
    rows = bundle.tokenize(sentences)
    # No prompt, which `tokenize` does not put in front either.
    cosines = _cosines(bundle.embed(sentences, prompt="", long_texts="cut"), eager_embeddings(eager, rows))
    return _fidelity(bundle, "cosine", float(cosines.mean()), len(cosines), "sentence embeddings of English sentences")


def held_out(bundle: Model, texts: list[str]) -> list[str]:
    """The first texts of that half which nothing is quantized by."""
    # A text is held out if all samples that it is cut into are. The hash decides, so that every run
    # and every precision has the same texts.
    reader, found = SampleReader(bundle.manifest), []
    for text in texts:
        try:
            samples = list(reader.read("a built-in text", text))
        except CalibrationError:  # too long for this model, or none of its language
            continue
        if samples and all(split_of(sample) == "held-out" for sample in samples):
            found.append(text)
    return found[:_COUNT]


def _hidden_states(eager: Transformer, bundle: Encoder) -> Fidelity:
    generator = torch.Generator().manual_seed(1)
    cosines = []
    # Without a tokenizer no text can be read: random ids of three lengths.
    for length in (5, 16, 64):
        inputs = _random_inputs(eager.config, generator, length)
        with torch.no_grad():
            expected = eager(next(iter(inputs.values())), src_mask=inputs.get("attention_mask")).flatten(0, 1).numpy()
        found = bundle.run(inputs)["last_hidden_state"]
        cosines.append(_cosines(found.reshape(expected.shape), expected))
    joined = np.concatenate(cosines)
    data = "random ids" if eager.config.image_size is None else "random images"
    return _fidelity(bundle, "cosine", float(joined.mean()), len(joined), f"last hidden states of {data}")


def _random_inputs(config: TransformerConfig, generator: torch.Generator, length: int) -> dict[str, torch.Tensor]:
    """Make 8 rows of ids, none padded, or 8 images."""
    if config.image_size is not None:
        size = (8, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(size, generator=generator)}
    ids_BT = torch.randint(config.vocab_size, (8, min(length, config.max_positions)), generator=generator)
    segments = {"token_type_ids": torch.zeros_like(ids_BT)} if config.type_vocab_size else {}
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)} | segments


def _outputs(eager: GenericGraph, bundle: Model) -> list[Fidelity]:
    """Cosine of each output of numbers, by its last axis, on random inputs."""
    if not isinstance(bundle, Module):
        raise VerificationError(f"a {type(bundle).__name__} cannot be compared with a module of another kind")
    generator = torch.Generator().manual_seed(1)
    # Integers have no cosine; `verify` has compared them.
    found: dict[str, list[npt.NDArray[np.float64]]] = {v.name: [] for v in eager.outputs if v.dtype.startswith("float")}
    for length in (5, 16, 64):
        inputs = eager.sample(generator, 8, length)
        feeds = {value.name: tensor.numpy() for value, tensor in zip(eager.inputs, inputs, strict=True)}
        with torch.no_grad(), no_fast_path():
            expected = eager(*inputs)
        actual = bundle.run(feeds)
        for value, tensor in zip(eager.outputs, expected, strict=True):
            if value.name in found:
                found[value.name].append(_cosines(actual[value.name], tensor.numpy()).reshape(-1))
    results = []
    for name, parts in found.items():
        joined = np.concatenate(parts)
        results.append(
            _fidelity(bundle, "cosine", float(joined.mean()), len(joined), f"rows of {name} on random inputs")
        )
    return results


def _generation(eager: Transformer | CachedTarget, bundle: EncoderDecoder) -> list[Fidelity]:
    generation = bundle.manifest.generation
    sources, data = _sources(eager, bundle)
    # A model that cannot begin or end is judged by next tokens alone, after targets of three ids.
    if generation is None or eager.config.bos_token_id is None or eager.config.eos_token_id is None:
        return [_agreement(eager, bundle, sources, [[1, 2, 3]] * len(sources), data)]
    # One place less, as the start token takes one.
    limit = min(generation.max_new_tokens, eager.config.max_positions - 1)
    if isinstance(eager, CachedTarget):
        sources = sources[:_PROMPTS]  # its own loop takes longer
        expected = eager.generate(sources, limit, generation.eos_token_ids)
    else:
        expected = eager_greedy(eager, sources, limit)
    found = bundle.generate(sources, max_new_tokens=limit, **PLAIN_SETTINGS)
    same = sum(left == right for left, right in zip(found, expected, strict=True))
    greedy = _fidelity(bundle, "greedy", same / len(sources), len(sources), f"whole greedy outputs for {data}")
    # Next tokens are compared after eager's own output: one early difference would otherwise make
    # all that follows another text.
    targets = [[eager.config.bos_token_id, *row] for row in expected]
    return [_agreement(eager, bundle, sources, targets, data), greedy]


def _written(eager: PerceivedTarget, bundle: Perceiver) -> list[Fidelity]:
    """Compare what is written of noise that is prepared already."""
    generation, start = bundle.manifest.generation, eager.config.bos_token_id
    source = eager.perceive(1, _NOISES)
    if generation is None or start is None:
        targets = [[1, 2, 3]] * _NOISES
        return [_written_next(eager, bundle, source, targets)]
    limit = min(_CONTINUED, eager.config.max_positions - 1)
    expected = eager.written(source, limit, generation.eos_token_ids)
    found = bundle.greedy(source.numpy(), [start], limit)
    same = sum(left == right for left, right in zip(found, expected, strict=True))
    greedy = _fidelity(bundle, "greedy", same / _NOISES, _NOISES, "whole greedy outputs for noise")
    return [_written_next(eager, bundle, source, [[start, *row] for row in expected]), greedy]


def _written_next(
    eager: PerceivedTarget, bundle: Perceiver, source: torch.Tensor, targets: list[list[int]]
) -> Fidelity:
    """Share of target tokens after which bundle and eager find the same next token most likely."""
    target_BS, real_BS = pad(targets, eager.config.pad_token_id or 0)
    expected_BS = eager.logits(target_BS, source).argmax(-1)
    found = bundle.run(source.numpy(), target_BS.numpy())["logits"].argmax(-1)
    same = (found == expected_BS.numpy())[real_BS.numpy() == 1]
    return _fidelity(bundle, "top-1", float(same.mean()), same.size, "next tokens for noise")


def _sources(eager: Transformer | CachedTarget, bundle: EncoderDecoder) -> tuple[list[list[int]], str]:
    """Words or sentences as ids where the bundle reads text, random ids where not."""
    generation = bundle.manifest.generation
    if generation is not None and _reads_text(bundle):
        texts = english_words(10_000) if generation.split_on_whitespace else english_sentences(10_000)
        texts = held_out(bundle, texts)
        # An empty or too long source is no input of eager's.
        rows = [row for row in bundle.tokenize(texts) if 0 < len(row) <= eager.config.max_positions]
        if rows:
            return rows, "English words" if generation.split_on_whitespace else "English sentences"
    rng = np.random.default_rng(1)
    longest = min(12, eager.config.max_positions)
    return [
        rng.integers(eager.config.vocab_size, size=rng.integers(1, longest + 1)).tolist() for _ in range(64)
    ], "random ids"


def _agreement(
    eager: Transformer | CachedTarget,
    bundle: EncoderDecoder,
    sources: list[list[int]],
    targets: list[list[int]],
    data: str,
) -> Fidelity:
    """Share of target tokens after which bundle and eager find the same next token most likely."""
    same = count = 0
    for start in range(0, len(sources), 64):
        src_BT, src_mask_BT = pad(sources[start : start + 64], eager.config.pad_token_id or 0)
        tgt_BS, tgt_mask_BS = pad(targets[start : start + 64], eager.config.pad_token_id or 0)
        with torch.no_grad():
            if isinstance(eager, CachedTarget):
                logits_BSV = eager.logits(tgt_BS, src_BT, src_mask_BT)
            else:
                logits_BSV = eager(src_BT, tgt_BS, src_mask=src_mask_BT)
            expected_BS = logits_BSV.argmax(-1).numpy()
        found = bundle.run(
            input_ids=src_BT.numpy(), decoder_input_ids=tgt_BS.numpy(), attention_mask=src_mask_BT.numpy()
        )
        # What follows a row's last token is nobody's.
        real_BS = tgt_mask_BS.numpy() == 1
        same += int((found["logits"].argmax(-1) == expected_BS)[real_BS].sum())
        count += int(real_BS.sum())
    return _fidelity(bundle, "top-1", same / max(count, 1), count, f"next tokens for {data}")


@torch.no_grad()
def _next_tokens(eager: Transformer | CachedGraph, bundle: Decoder) -> Fidelity:
    """Compare after each token of texts, one by one, that nothing was quantized by."""
    same = count = 0
    held_out = read_calibration(None, bundle.manifest, count=_PROMPTS, split="held-out")
    # One row at a time, so that nothing is padded and every position counts.
    for feeds in held_out.batches("model", 1):
        ids_BS = torch.from_numpy(feeds["input_ids"])
        logits_BSV = eager.logits(ids_BS) if isinstance(eager, CachedGraph) else eager.decoder(ids_BS)[0]
        expected = logits_BSV.argmax(-1).numpy()
        same += int((bundle.run(feeds)["logits"].argmax(-1) == expected).sum())
        count += expected.size
    return _fidelity(bundle, "top-1", same / max(count, 1), count, f"next tokens for {held_out.what}")


def _continued(eager: CachedGraph, bundle: Decoder) -> list[Fidelity]:
    """Compare what is generated with what transformers' own `generate` gives, for a ragged batch of prompts."""
    generation = bundle.manifest.generation
    if generation is None:
        return []
    # Ragged, so that rows are padded here and there.
    rng = np.random.default_rng(1)
    longest = max(1, min(12, eager.config.max_positions // 2))
    rows = [rng.integers(eager.config.vocab_size, size=rng.integers(1, longest + 1)).tolist() for _ in range(16)]
    count = min(_CONTINUED, eager.config.max_positions - longest)
    expected = eager.generate(rows, count, generation.eos_token_ids)
    found = bundle.generate(rows, max_new_tokens=count, **PLAIN_SETTINGS)
    same = sum(left == right for left, right in zip(found, expected, strict=True))
    return [_fidelity(bundle, "greedy", same / len(rows), len(rows), "whole greedy outputs for random ids")]


def _reads_text(bundle: Model) -> bool:
    return "tokenizer.json" in bundle.manifest.files


def _cosines(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    # A number by itself is a row of one.
    a, e = (np.atleast_1d(x.astype(np.float64)) for x in (found, expected))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(e, axis=-1)
    cosines: npt.NDArray[np.float64] = (a * e).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    # Rows that are zero on both sides are alike: those of padding often are, and where outputs are masked. Where
    # there is no other row, nothing was proved, and 0 stays.
    zero = ~a.any(-1) & ~e.any(-1)
    return cosines if zero.all() else np.where(zero, 1.0, cosines)


def _fidelity(bundle: Model, measure: str, value: float, count: int, data: str) -> Fidelity:
    precision = bundle.precision
    return Fidelity(
        precision=precision, measure=measure, value=value, floor=FLOORS[measure, precision], count=count, data=data
    )
