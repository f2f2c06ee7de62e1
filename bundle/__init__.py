"""A bundle on disk: what is in the folder, what proves it, and how it is read, written and put in place."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .certificate_file import PARITY_SCHEMA, check_schema, read_certificate, renew_certificate, write_certificate
    from .checked_json import CheckedJson, parse_json
    from .companions import (
        CONFIG,
        GENERATION_CONFIG,
        MASK_FILES,
        PROCESSOR,
        SENTENCES,
        TEMPLATE,
        TOKENIZER,
        VOCABULARY,
        Companions,
    )
    from .external_data import external_locations, weights_file
    from .files import HeldFile, read_file
    from .gate import Gate, Judged, all_passed, nothing_compared, precision_of
    from .genai_file import GENAI_CONFIG, graph_of_genai, renew_genai_config
    from .golden_files import (
        ARRAYS,
        LIMITS,
        Golden,
        GoldenCase,
        GoldenLimits,
        golden_inputs,
        read_golden,
        renew_limits,
        write_golden_files,
    )
    from .json_files import describe_file, finite, parse_once, read_json, write_json
    from .locate import MANIFEST, folder_of
    from .manifest import (
        MERGED,
        MERGED_ROLE,
        Generation,
        Manifest,
        Signature,
        TensorSpec,
        altered,
        check_digests,
        read_manifest,
        read_proved,
        renew_manifest,
        write_manifest,
    )
    from .messages import brief, kind_of
    from .packing import Pack, PackedFile, pack_bundle
    from .recipe_file import RecipeFile, read_recipe_file
    from .requires import OLDEST, is_older, lowest_needed, newest
    from .scratch import scratch_folder, try_lock
    from .signature import check_signature
    from .staging import finish, staged
    from .stopping import STOPPING, Patience
    from .whole_file import write_whole

__all__ = [
    "ARRAYS",
    "CONFIG",
    "GENAI_CONFIG",
    "GENERATION_CONFIG",
    "LIMITS",
    "MANIFEST",
    "MASK_FILES",
    "MERGED",
    "MERGED_ROLE",
    "OLDEST",
    "PARITY_SCHEMA",
    "PROCESSOR",
    "SENTENCES",
    "STOPPING",
    "TEMPLATE",
    "TOKENIZER",
    "VOCABULARY",
    "CheckedJson",
    "Companions",
    "Gate",
    "Generation",
    "Golden",
    "GoldenCase",
    "GoldenLimits",
    "HeldFile",
    "Judged",
    "Manifest",
    "Pack",
    "PackedFile",
    "Patience",
    "RecipeFile",
    "Signature",
    "TensorSpec",
    "all_passed",
    "altered",
    "brief",
    "check_digests",
    "check_schema",
    "check_signature",
    "describe_file",
    "external_locations",
    "finish",
    "finite",
    "folder_of",
    "golden_inputs",
    "graph_of_genai",
    "is_older",
    "kind_of",
    "lowest_needed",
    "newest",
    "nothing_compared",
    "pack_bundle",
    "parse_json",
    "parse_once",
    "precision_of",
    "read_certificate",
    "read_file",
    "read_golden",
    "read_json",
    "read_manifest",
    "read_proved",
    "read_recipe_file",
    "renew_certificate",
    "renew_genai_config",
    "renew_limits",
    "renew_manifest",
    "scratch_folder",
    "staged",
    "try_lock",
    "weights_file",
    "write_certificate",
    "write_golden_files",
    "write_json",
    "write_manifest",
    "write_whole",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "certificate_file": "PARITY_SCHEMA check_schema read_certificate renew_certificate write_certificate",
        "checked_json": "CheckedJson parse_json",
        "companions": "CONFIG GENERATION_CONFIG MASK_FILES PROCESSOR SENTENCES TEMPLATE TOKENIZER VOCABULARY "
        "Companions",
        "external_data": "external_locations weights_file",
        "files": "HeldFile read_file",
        "gate": "Gate Judged all_passed nothing_compared precision_of",
        "genai_file": "GENAI_CONFIG graph_of_genai renew_genai_config",
        "golden_files": "ARRAYS LIMITS Golden GoldenCase GoldenLimits golden_inputs read_golden renew_limits "
        "write_golden_files",
        "json_files": "describe_file finite parse_once read_json write_json",
        "locate": "MANIFEST folder_of",
        "manifest": "MERGED MERGED_ROLE Generation Manifest Signature TensorSpec altered check_digests read_manifest "
        "read_proved renew_manifest write_manifest",
        "messages": "brief kind_of",
        "packing": "Pack PackedFile pack_bundle",
        "recipe_file": "RecipeFile read_recipe_file",
        "requires": "OLDEST is_older lowest_needed newest",
        "scratch": "scratch_folder try_lock",
        "signature": "check_signature",
        "staging": "finish staged",
        "stopping": "STOPPING Patience",
        "whole_file": "write_whole",
    },
)
