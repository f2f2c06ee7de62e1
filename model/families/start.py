"""Which token a Hugging Face encoder-decoder starts to write with: config.json's, else generation_config.json's."""

from pathlib import Path

from ..fields import Fields
from ..json_file import read_object


def read_start(folder: Path, values: Fields, *, default: int | None) -> int | None:
    """Read decoder_start_token_id; `default` where neither file names it."""
    start, path = values.token("decoder_start_token_id"), folder / "generation_config.json"
    if start is None and path.is_file():
        start = Fields(path, "generation", read_object(path)).token("decoder_start_token_id")
    return default if start is None else start
