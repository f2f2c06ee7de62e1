"""A tokenizer.json for checkpoints without one: made by transformers' own converters, and compared text by text.

What a checkpoint has instead are a vocabulary (vocab.txt, vocab.json and merges.txt) or a model of sentencepiece
(*.model, *.spm), which only transformers' classes know how to read. The file that is made is tried by the runtime's own
reader on texts of many kinds, beside the tokenizer that it was made from; one other id, and the bundle takes ids only.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfm.errors import TfmError
from tfm.latency import english_sentences
from tfm.runtime import Tokenizer

_MODELS = (".model", ".spm")
_SENTENCES = 200

TEXTS = (
    "Hello, world!",
    " leading and trailing spaces  and   more in the middle ",
    "tabs\tand\nnew lines\r\nand\n\n\nmore",
    "It's the reader's, isn't it? They've said we'd know 'em.",
    "MiXeD cAsE, ALL CAPS, snake_case, kebab-case, CamelCase",
    "1 22 333 4444 55555 3.14159 -2e10 0x1F 1,000,000 50%",
    "def f(x: int) -> int:\n    return {'a': [x ** 2, x // 3]}['a'][0]  # a comment\n",
    "SELECT * FROM t WHERE a <> 'b' AND c >= 3; -- what",
    '<div class="a">&amp; &lt;tag/&gt;</div> https://example.org/a?b=c&d=%20#e user@example.org',
    "Crème brûlée, naïve façade, Ångström, Straße, İstanbul, ﬁne ligature",
    "Der Fluß fließt; el niño come piñas; o coração; łódź; čeština; magyar őűű",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "Η γρήγορη καφέ αλεπού",
    "שלום עולם، مرحبا بالعالم",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "你好，世界。這是一個測試。",
    "こんにちは世界。カタカナとひらがな、ﾊﾝｶｸ",
    "안녕하세요 세계",
    "emoji 😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ ©®™",
    "full width ＡＢＣ１２３ and ½ ² ③ Ⅳ",
    "zero\u200bwidth, no\u00a0break, soft\u00adhyphen, bom\ufeff, combining e\u0301, control\x07",
    "…—–‘’“”«»‹›¿¡§¶†‡•",
    "a" * 300,
    "ab" * 40 + " " + "x" * 101,
    "!!!???...,,,;;;((()))",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙 and 𐍈 𓀀",
    "▁underline of sentencepiece ▁▁ and Ġ of bytes",
)
"""Kinds of text in which tokenizers differ."""


def make_tokenizer(source: Path, names: Sequence[str], target: Path) -> str | None:
    """Write a tokenizer.json for a checkpoint that has none.

    Args:
        source: The checkpoint's folder.
        names: The files that its tokenizer is stored in.
        target: The file to write; it is there afterwards only if it reads all texts as the checkpoint's tokenizer does.

    Returns:
        Why there is none, for a person; None: it is there.
    """
    files = ", ".join(names)
    try:
        import transformers
    except ImportError:
        return f"there is no tokenizer.json, and transformers, which makes one of {files}, is not installed"
    # It may know these files and yet not be able to convert them: that is told, and the export goes on.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slow = _slow(transformers, source)
            _converted(transformers, source, slow).save(str(target))
            differs = _first_difference(slow, Tokenizer(target), _texts(slow))
    # What transformers cannot do with such files it says in errors of any kind.
    except (TfmError, ImportError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        target.unlink(missing_ok=True)
        # Without the package transformers knows nothing of such a class, and says so in words of its own.
        if any(name.endswith(_MODELS) for name in names) and not _has_sentencepiece():
            return f"transformers reads {files} by sentencepiece, which is not installed: pip install sentencepiece"
        reason = " ".join(str(error).split())[:200]
        return f"transformers makes no tokenizer.json of {files} ({type(error).__name__}: {reason})"
    # A text that is read otherwise gives another answer, and nobody would notice.
    if differs is not None:
        target.unlink()
        return f"a tokenizer.json made of {files} reads {differs[:60]!r} otherwise than {type(slow).__name__} does"
    return None


def tokenizer_files(folder: Path) -> list[str]:
    """Name the files that a tokenizer is stored in, other than tokenizer.json."""
    names = [name for name in ("vocab.txt", "vocab.json", "merges.txt") if (folder / name).is_file()]
    if folder.is_dir():
        names += sorted(file.name for file in folder.iterdir() if file.suffix in _MODELS and file.is_file())
    return names


def _has_sentencepiece() -> bool:
    return importlib.util.find_spec("sentencepiece") is not None


def _slow(transformers: Any, source: Path) -> Any:
    """The checkpoint's tokenizer in plain Python, where transformers still has that; else the one that it has."""
    found = transformers.AutoTokenizer.from_pretrained(source, use_fast=False, local_files_only=True)
    try:
        legacy = importlib.import_module(f"{type(found).__module__}_legacy")
    except ModuleNotFoundError:
        return found
    return getattr(legacy, f"{type(found).__name__}Legacy").from_pretrained(source, local_files_only=True)


def _converted(transformers: Any, source: Path, slow: Any) -> Any:
    """What `tokenizers` has of the same: transformers' own object, or what its converter makes of a slow one."""
    from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS, convert_slow_tokenizer

    # Since transformers 5 most have no other form, and this is the tokenizer itself.
    fast = transformers.AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=True)
    if getattr(fast, "is_fast", False):
        return fast.backend_tokenizer
    name = type(slow).__name__
    if name not in SLOW_TO_FAST_CONVERTERS:
        raise ValueError(f"it has no converter for {name}")
    return convert_slow_tokenizer(slow)


def _texts(slow: Any) -> Sequence[str]:
    """Documentation, code, languages, signs, and the tokenizer's own special tokens within a text."""
    # Within a text they are read as themselves, or not, which is where tokenizers differ most.
    special = [token for token in slow.all_special_tokens if isinstance(token, str)]
    within = [f"a {token} b{token}c" for token in special]
    return [*TEXTS, *special, *within, *english_sentences(_SENTENCES)]


def _first_difference(slow: Any, reader: Tokenizer, texts: Sequence[str]) -> str | None:
    """The first text that is read otherwise."""
    for text in texts:
        # Some have no tokens for a text of spaces, which the runtime refuses.
        expected = slow(text)["input_ids"]
        if expected and reader.encode([text]) != [list(expected)]:
            return text
    return None
