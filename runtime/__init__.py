"""What an app embeds: open a bundle, run it, embed and generate with it. Needs numpy and onnxruntime only."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from tfm.ops import ErrorStats

    from .control import CancelToken
    from .decoder import Decoder
    from .doctor.doctor import BundleState, CanaryState, Diagnosis, diagnose
    from .encoder import Encoder
    from .encoder_decoder import EncoderDecoder
    from .generation.conversation import Conversation
    from .generation.loop import continue_greedily
    from .generation.settings import GenerationSettings
    from .generation.state import DecoderState, from_nothing
    from .golden import GoldenOutput, GoldenReport, check_golden
    from .heads import Entity, Fill, Label
    from .inputs.batches import batches, check_count, check_rows, length_limit, pad_rows
    from .inputs.checks import Array, InputChecks, nearest
    from .inputs.tokenizer import Tokenizer
    from .loading import load
    from .model import Model
    from .module import Module
    from .progress import Progress, reporter
    from .sessions.cpu import model_name, usable_cores
    from .sessions.graph_files import check_graphs, files_of_graph
    from .sessions.options import session_options
    from .sessions.providers import PROVIDERS, count_threads, open_session
    from .sessions.requires import check_onnxruntime
    from .sessions.session import Session

__all__ = [
    "PROVIDERS",
    "Array",
    "BundleState",
    "CanaryState",
    "CancelToken",
    "Conversation",
    "Decoder",
    "DecoderState",
    "Diagnosis",
    "Encoder",
    "EncoderDecoder",
    "Entity",
    "ErrorStats",
    "Fill",
    "GenerationSettings",
    "GoldenOutput",
    "GoldenReport",
    "InputChecks",
    "Label",
    "Model",
    "Module",
    "Progress",
    "Session",
    "Tokenizer",
    "batches",
    "check_count",
    "check_golden",
    "check_graphs",
    "check_onnxruntime",
    "check_rows",
    "continue_greedily",
    "count_threads",
    "diagnose",
    "files_of_graph",
    "from_nothing",
    "length_limit",
    "load",
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
        "PROVIDERS": "sessions.providers",
        "Array": "inputs.checks",
        "BundleState": "doctor.doctor",
        "CanaryState": "doctor.doctor",
        "CancelToken": "control",
        "Conversation": "generation.conversation",
        "Decoder": "decoder",
        "DecoderState": "generation.state",
        "Diagnosis": "doctor.doctor",
        "Encoder": "encoder",
        "EncoderDecoder": "encoder_decoder",
        "Entity": "heads",
        "ErrorStats": "golden",
        "Fill": "heads",
        "GenerationSettings": "generation.settings",
        "GoldenOutput": "golden",
        "GoldenReport": "golden",
        "InputChecks": "inputs.checks",
        "Label": "heads",
        "Model": "model",
        "Module": "module",
        "Progress": "progress",
        "Session": "sessions.session",
        "Tokenizer": "inputs.tokenizer",
        "batches": "inputs.batches",
        "check_count": "inputs.batches",
        "check_golden": "golden",
        "check_graphs": "sessions.graph_files",
        "check_onnxruntime": "sessions.requires",
        "check_rows": "inputs.batches",
        "continue_greedily": "generation.loop",
        "count_threads": "sessions.providers",
        "diagnose": "doctor.doctor",
        "files_of_graph": "sessions.graph_files",
        "from_nothing": "generation.state",
        "length_limit": "inputs.batches",
        "load": "loading",
        "model_name": "sessions.cpu",
        "nearest": "inputs.checks",
        "open_session": "sessions.providers",
        "pad_rows": "inputs.batches",
        "reporter": "progress",
        "session_options": "sessions.options",
        "usable_cores": "sessions.cpu",
    },
    {"Figures": "ErrorStats"},
)
