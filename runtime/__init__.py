"""What an app embeds: open a bundle, run it, embed and generate with it. Needs numpy and onnxruntime only."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from tfm.ops import ErrorStats

    from .control import CancelToken
    from .decoder import Decoder
    from .doctor.doctor import BundleState, CanaryState, Diagnosis, diagnose
    from .encoder import EmbedOptions, EmbedStreamOptions, Encoder
    from .encoder_decoder import EncoderDecoder
    from .generation.conversation import Conversation
    from .generation.defaults import PLAIN_SETTINGS, check_defaults, merged_settings
    from .generation.loop import continue_greedily
    from .generation.settings import GenerationSettings
    from .generation.state import DecoderState, from_nothing
    from .golden import GoldenOutput, GoldenReport, check_golden
    from .golden_matrix import PLACES, Matrix, check_golden_on
    from .inputs.batched import CallOptions, StreamOptions, TaskOptions
    from .inputs.batches import batches, check_count, check_rows, length_limit, pad_rows
    from .inputs.checks import Array, InputChecks, nearest
    from .inputs.tokenizer import Tokenizer
    from .loading import load
    from .model import Model
    from .module import Module
    from .perceiver import Perceiver
    from .progress import Progress, StepProgress, reporter
    from .sessions.cpu import model_name, usable_cores
    from .sessions.graph_files import check_graphs, files_of_graph
    from .sessions.options import session_options
    from .sessions.providers import PROVIDERS, count_threads, open_session
    from .sessions.requires import check_onnxruntime
    from .sessions.session import Session
    from .tasks.embeddings import VectorOptions, embedding_ranges
    from .tasks.entities import Entity, EntityGroup
    from .tasks.labeling import Label
    from .tasks.letters import Chunk, Transcript
    from .tasks.masks import Fill
    from .tasks.ranking import Ranked
    from .tasks.spans import Answer
    from .tasks.zero_shot import ZeroShot
    from .whisper import Whisper

__all__ = [
    "PLACES",
    "PLAIN_SETTINGS",
    "PROVIDERS",
    "Answer",
    "Array",
    "BundleState",
    "CallOptions",
    "CanaryState",
    "CancelToken",
    "Chunk",
    "Conversation",
    "Decoder",
    "DecoderState",
    "Diagnosis",
    "EmbedOptions",
    "EmbedStreamOptions",
    "Encoder",
    "EncoderDecoder",
    "Entity",
    "EntityGroup",
    "ErrorStats",
    "Fill",
    "GenerationSettings",
    "GoldenOutput",
    "GoldenReport",
    "InputChecks",
    "Label",
    "Matrix",
    "Model",
    "Module",
    "Perceiver",
    "Progress",
    "Ranked",
    "Session",
    "StepProgress",
    "StreamOptions",
    "TaskOptions",
    "Tokenizer",
    "Transcript",
    "VectorOptions",
    "Whisper",
    "ZeroShot",
    "batches",
    "check_count",
    "check_defaults",
    "check_golden",
    "check_golden_on",
    "check_graphs",
    "check_onnxruntime",
    "check_rows",
    "continue_greedily",
    "count_threads",
    "diagnose",
    "embedding_ranges",
    "files_of_graph",
    "from_nothing",
    "length_limit",
    "load",
    "merged_settings",
    "model_name",
    "nearest",
    "open_session",
    "pad_rows",
    "reporter",
    "session_options",
    "usable_cores",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "control": "CancelToken",
        "decoder": "Decoder",
        "doctor.doctor": "BundleState CanaryState Diagnosis diagnose",
        "encoder": "EmbedOptions EmbedStreamOptions Encoder",
        "encoder_decoder": "EncoderDecoder",
        "generation.conversation": "Conversation",
        "generation.defaults": "PLAIN_SETTINGS check_defaults merged_settings",
        "generation.loop": "continue_greedily",
        "generation.settings": "GenerationSettings",
        "generation.state": "DecoderState from_nothing",
        "golden": "ErrorStats GoldenOutput GoldenReport check_golden",
        "golden_matrix": "PLACES Matrix check_golden_on",
        "inputs.batched": "CallOptions StreamOptions TaskOptions",
        "inputs.batches": "batches check_count check_rows length_limit pad_rows",
        "inputs.checks": "Array InputChecks nearest",
        "inputs.tokenizer": "Tokenizer",
        "loading": "load",
        "model": "Model",
        "module": "Module",
        "perceiver": "Perceiver",
        "whisper": "Whisper",
        "progress": "Progress StepProgress reporter",
        "sessions.cpu": "model_name usable_cores",
        "sessions.graph_files": "check_graphs files_of_graph",
        "sessions.options": "session_options",
        "sessions.providers": "PROVIDERS count_threads open_session",
        "sessions.requires": "check_onnxruntime",
        "sessions.session": "Session",
        "tasks.embeddings": "VectorOptions embedding_ranges",
        "tasks.entities": "Entity EntityGroup",
        "tasks.labeling": "Label",
        "tasks.letters": "Chunk Transcript",
        "tasks.masks": "Fill",
        "tasks.ranking": "Ranked",
        "tasks.spans": "Answer",
        "tasks.zero_shot": "ZeroShot",
    },
    {"Figures": "ErrorStats", "GOLDEN_SCHEMA": "tfm.bundle.golden_files.GOLDEN_SCHEMA"},
)
