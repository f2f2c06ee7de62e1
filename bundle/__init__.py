"""A bundle on disk: what is in the folder, what proves it, and how it is read, written and put in place."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .checked_json import CheckedJson, parse_json
    from .companions import CONFIG, MASK_FILES, TOKENIZER, Companions
    from .external_data import external_locations
    from .files import HeldFile, read_file
    from .gate import Gate, all_passed, precision_of
    from .json_files import describe_file, finite, read_json, write_json
    from .locate import folder_of
    from .manifest import (
        Generation,
        Manifest,
        Signature,
        TensorSpec,
        altered,
        check_digests,
        read_manifest,
        read_proved,
    )
    from .messages import brief, kind_of
    from .requires import OLDEST, is_older, lowest_needed, newest
    from .scratch import scratch_folder, try_lock
    from .staging import finish, staged
    from .stopping import STOPPING, Patience
    from .stored_arrays import ARRAYS, read_arrays
    from .whole_file import write_whole

__all__ = [
    "ARRAYS",
    "CONFIG",
    "MASK_FILES",
    "OLDEST",
    "STOPPING",
    "TOKENIZER",
    "CheckedJson",
    "Companions",
    "Gate",
    "Generation",
    "HeldFile",
    "Manifest",
    "Patience",
    "Signature",
    "TensorSpec",
    "all_passed",
    "altered",
    "brief",
    "check_digests",
    "describe_file",
    "external_locations",
    "finish",
    "finite",
    "folder_of",
    "is_older",
    "kind_of",
    "lowest_needed",
    "newest",
    "parse_json",
    "precision_of",
    "read_arrays",
    "read_file",
    "read_json",
    "read_manifest",
    "read_proved",
    "scratch_folder",
    "staged",
    "try_lock",
    "write_json",
    "write_whole",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ARRAYS": "stored_arrays",
        "CONFIG": "companions",
        "MASK_FILES": "companions",
        "OLDEST": "requires",
        "STOPPING": "stopping",
        "TOKENIZER": "companions",
        "CheckedJson": "checked_json",
        "Companions": "companions",
        "Gate": "gate",
        "Generation": "manifest",
        "HeldFile": "files",
        "Manifest": "manifest",
        "Patience": "stopping",
        "Signature": "manifest",
        "TensorSpec": "manifest",
        "all_passed": "gate",
        "altered": "manifest",
        "brief": "messages",
        "check_digests": "manifest",
        "describe_file": "json_files",
        "external_locations": "external_data",
        "finish": "staging",
        "finite": "json_files",
        "folder_of": "locate",
        "is_older": "requires",
        "kind_of": "messages",
        "lowest_needed": "requires",
        "newest": "requires",
        "parse_json": "checked_json",
        "precision_of": "gate",
        "read_arrays": "stored_arrays",
        "read_file": "files",
        "read_json": "json_files",
        "read_manifest": "manifest",
        "read_proved": "manifest",
        "scratch_folder": "scratch",
        "staged": "staging",
        "try_lock": "scratch",
        "write_json": "json_files",
        "write_whole": "whole_file",
    },
)
