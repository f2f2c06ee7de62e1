"""Small files of a bundle that a model may need later: read and proved when it is opened, whatever becomes of them."""

from .checked_json import CheckedJson, parse_json
from .manifest import Manifest, read_proved

TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
SENTENCES = "config_sentence_transformers.json"
PROCESSOR = "preprocessor_config.json"
GENERATION_CONFIG = "generation_config.json"
TEMPLATE = "chat_template.jinja"
VOCABULARY = "vocab.json"
"""Which letters the logits of a model that hears them stand for."""

MASK_FILES = ("tokenizer_config.json", "special_tokens_map.json")


class Companions:
    """The files beside a bundle's graphs that say how texts are read and what its outputs mean."""

    def __init__(self, manifest: Manifest) -> None:
        """Read those that the bundle has.

        Raises:
            BundleError: One was altered or cannot be read.
        """
        self.manifest = manifest
        names = [TOKENIZER]
        if manifest.kind in ("encoder", "module"):
            # The first of them says whether a model is told which text of a pair a token is of.
            names += [CONFIG, *MASK_FILES] if _has_logits(manifest) else MASK_FILES[:1]
            # Small, and read only if asked for.
            names += [SENTENCES, PROCESSOR, VOCABULARY]
        elif manifest.kind == "encoder-decoder" and not _reads_ids(manifest):
            names += [CONFIG, PROCESSOR, GENERATION_CONFIG]
        else:
            # How messages are written, and with which special tokens.
            names += [TEMPLATE, MASK_FILES[0]]
        self._contents = {name: read_proved(manifest, name) for name in names if name in manifest.files}

    def content(self, name: str) -> bytes | None:
        """Give a file's content; None: the bundle has none of that name."""
        return self._contents.get(name)

    def forget(self, name: str) -> None:
        """Let go of what was made use of, and is not needed again."""
        self._contents.pop(name, None)

    def json(self, name: str) -> dict[str, CheckedJson] | None:
        """Give the object in a JSON file; None: the bundle has none of that name.

        Raises:
            BundleError: It is malformed.
        """
        content = self.content(name)
        return None if content is None else parse_json(self.manifest.folder / name, content).fields()

    def texts(self, name: str, key: str) -> list[str] | None:
        """Give a list of strings in the object of a JSON file; None: there is no such key, or no such file.

        Raises:
            BundleError: It is malformed.
        """
        value = (self.json(name) or {}).get(key)
        return None if value is None or value.value is None else [item.text() for item in value.items()]


def _has_logits(manifest: Manifest) -> bool:
    signature = manifest.signature.get("model")
    return signature is not None and any(spec.name.endswith("logits") for spec in signature.outputs)


def _reads_ids(manifest: Manifest) -> bool:
    return any(spec.name == "input_ids" for spec in manifest.signature["encoder"].inputs)
