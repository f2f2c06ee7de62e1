"""The one tree of errors, shared by every room.

    TfmError
    ├── ConfigError        a configuration that is unknown, mistyped or contradicts itself
    │   └── NotNativeError     one that says another function than the native model is; another way may have it
    ├── CheckpointError    a checkpoint that cannot be read, or does not fit its configuration
    ├── ExportError        a model that cannot be turned into ONNX as asked
    ├── VerificationError  a comparison that could not be made (never: one that failed)
    ├── QuantizeError      a graph that cannot be quantized as asked
    ├── CalibrationError   data to calibrate with that is malformed, or that the model must not see
    ├── BundleError        a bundle that is missing, altered, incomplete or not a bundle
    ├── ProviderError      an execution provider that was asked for and does not run
    ├── InputError         an input the model must not see: name, dtype, rank, range, length
    │   └── MissingTaskError   a task that a model of this kind does not have
    ├── RunCancelledError  a run that its CancelToken ended
    ├── RunTimeoutError    a run that took longer than its timeout
    ├── ClosedError        a model that is used after it was closed
    └── ForkError          a model that is used in a process forked after it was loaded

A message says what is wrong, where, what was expected, and what to do about it.
The command line prints it as one line and exits with 2.

What is no error, but may be no answer either, is a warning:

    TextWarning            a text that was not read, or not written, as a whole
"""

__all__ = [
    "BundleError",
    "CalibrationError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "ExportError",
    "ForkError",
    "InputError",
    "MissingTaskError",
    "NotNativeError",
    "ProviderError",
    "QuantizeError",
    "RunCancelledError",
    "RunTimeoutError",
    "TextWarning",
    "TfmError",
    "VerificationError",
]


class TfmError(Exception):
    """Root of everything tfm raises on purpose."""


class ConfigError(TfmError, ValueError):
    """A configuration that is unknown, mistyped or contradicts itself."""


class NotNativeError(ConfigError):
    """A configuration that says another function than the native model is, such as a head that it does not have."""


class CheckpointError(TfmError):
    """A checkpoint that cannot be read, or does not fit its configuration."""


class ExportError(TfmError):
    """A model that cannot be turned into ONNX as asked."""


class VerificationError(TfmError):
    """A comparison that could not be made; one that fails is a verdict, not an error."""


class QuantizeError(TfmError):
    """A graph that cannot be quantized as asked."""


class CalibrationError(TfmError):
    """Data to calibrate with that is malformed, or that the model must not see."""


class BundleError(TfmError):
    """A bundle that is missing, altered, incomplete or not a bundle."""


class ProviderError(TfmError):
    """An execution provider that was asked for and does not run here."""


class InputError(TfmError, ValueError):
    """An input the model must not see: its name, dtype, rank, range or length is off."""


class MissingTaskError(InputError, AttributeError):
    """A task that a model of this kind does not have, so that `hasattr` says so too."""


class RunCancelledError(TfmError):
    """A run that its CancelToken ended."""


class RunTimeoutError(TfmError, TimeoutError):
    """A run that took longer than its timeout."""


class ClosedError(TfmError):
    """A model that is used after it was closed."""


class ForkError(TfmError):
    """A model that is used in a process forked after it was loaded."""


class TextWarning(UserWarning):
    """A text that was not read as a whole, being too long; or not written as a whole, as the tokenizer lacks ids."""
