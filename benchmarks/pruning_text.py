"""English for `pruning.py`, from what Debian packages hold: glosses, dictionaries, a handbook, manuals, epigrams.

    apt-get install wordnet-base dict-foldoc dict-jargon fortunes debian-handbook perl-doc
    python benchmarks/pruning_text.py FOLDER [--root /]

Writes FOLDER/train.txt and FOLDER/held_out.txt, a sentence a line. A document (an entry, a file, a class of WordNet)
is on one side with all its sentences: on the second, one of ten, by a hash of its name. Docstrings of the standard
library are on the first; the built-in sentences (`tfm.latency.text`), which are judged too, are on neither.
"""

import argparse
import gzip
import hashlib
import html
import random
import re
from collections.abc import Iterator
from pathlib import Path

from encoders import docstring_sentences

from tfm.latency.text import english_sentences

Document = tuple[str, str]
"""Its name, and its text."""


def wordnet(share: Path) -> Iterator[Document]:
    """Glosses and examples, in the classes of WordNet's lexicographers."""
    for file in sorted((share / "wordnet").glob("data.*")):
        classes: dict[str, list[str]] = {}
        for line in file.read_text(encoding="latin-1").splitlines():
            if line[:1].isdigit() and "|" in line:
                fields, gloss = line.split(" | ", 1)
                classes.setdefault(fields.split()[1], []).extend(part.strip(' "') for part in gloss.split(";"))
        yield from ((f"wordnet {name}", "\n".join(lines)) for name, lines in classes.items())


def dictionary(share: Path, name: str) -> Iterator[Document]:
    """Entries of a dictd dictionary: an unindented headword, then indented paragraphs."""
    with gzip.open(share / "dictd" / f"{name}.dict.dz", "rt", encoding="utf-8") as file:
        text = re.sub(r"\{\s*([^}]*)\}|<[a-z ,]+>", r"\1", file.read())
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        yield f"{name} {head}", body


def fortunes(share: Path) -> Iterator[Document]:
    """Files of epigrams."""
    for file in sorted((share / "games" / "fortunes").glob("*.u8")):
        yield f"fortunes {file.name}", file.read_text(encoding="utf-8").replace("\n%\n", "\n\n")


def handbook(share: Path) -> Iterator[Document]:
    """Chapters of the Debian Administrator's Handbook."""
    for file in sorted((share / "doc" / "debian-handbook" / "html" / "en-US").glob("*.html")):
        paragraphs = re.findall(r'<div class="para">(.*?)</div>', file.read_text(encoding="utf-8"), re.DOTALL)
        yield f"handbook {file.name}", "\n\n".join(html.unescape(re.sub("<[^>]*>", "", part)) for part in paragraphs)


def manuals(share: Path) -> Iterator[Document]:
    """Perl's manuals, without their code."""
    for file in sorted((share / "perl").rglob("*.pod")):
        paragraphs = file.read_text(encoding="utf-8", errors="replace").split("\n\n")
        prose = [part for part in paragraphs if part[:1].isalpha()]
        yield f"perl {file.name}", re.sub(r"[A-Z]<+ ?(?:[^<>|]*\|)?([^<>]*?) ?>+", r"\1", "\n\n".join(prose))


def sentences_of(text: str) -> list[str]:
    """Sentences, or lines that are none, of 3 to 80 words."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text) if "\n\n" in text else text.split("\n"):
        for part in re.split(r"(?<=[.!?]) +(?=[A-Z\"'(])", " ".join(paragraph.split())):
            if 3 <= len(part.split()) <= 80 and sum(map(str.isalpha, part)) > 0.7 * len(part):
                found.append(part)
    return found


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"), help="Where the packages are unpacked [default: /].")
    options = parser.parse_args()
    share = options.root / "usr" / "share"
    documents = [*wordnet(share), *dictionary(share, "foldoc"), *dictionary(share, "jargon"), *fortunes(share)]
    documents += [*handbook(share), *manuals(share)]
    sides: tuple[list[str], list[str]] = (docstring_sentences(), [])
    for name, text in documents:
        sides[int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0].extend(sentences_of(text))
    known = set(english_sentences(10**6))
    train = sorted(set(sides[0]) - known)
    held_out = sorted(set(sides[1]) - known - set(train))
    options.folder.mkdir(parents=True, exist_ok=True)
    for file, lines in (("train.txt", train), ("held_out.txt", held_out)):
        random.Random(0).shuffle(lines)
        (options.folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        words = sum(len(line.split()) for line in lines)
        print(f"{file}: {len(lines)} sentences of {words / len(lines):.1f} words on average")


if __name__ == "__main__":
    main()
