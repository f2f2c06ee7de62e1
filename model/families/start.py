"""Which token a Hugging Face encoder-decoder starts to write with: config.json's, else generation_config.json's."""

import json
from pathlib import Path
from typing import Any

from tfm.errors import CheckpointError


def read_start(folder: Path, values: dict[str, Any], *, default: int | None) -> int | None:
    """Read decoder_start_token_id; `default` where neither file names it.

    Raises:
        CheckpointError: generation_config.json is not JSON.
    """
    start = values.get("decoder_start_token_id")
    path = folder / "generation_config.json"
    if start is None and path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error
        start = content.get("decoder_start_token_id") if isinstance(content, dict) else None
    return default if start is None else start
