"""Small files of a bundle that a model may need later: read and proved when it is opened, whatever becomes of them."""

from .checked_json import CheckedJson, parse_json
from .manifest import Manifest, read_proved

TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
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
        if _has_logits(manifest):  # nothing else needs them
            names += [CONFIG, *MASK_FILES]
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


def _has_logits(manifest: Manifest) -> bool:
    signature = manifest.signature.get("model")
    return manifest.kind == "encoder" and signature is not None and any(s.name == "logits" for s in signature.outputs)
