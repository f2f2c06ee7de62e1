"""Messages of a chat as the text that its model was trained on: the checkpoint's own template, in Jinja.

The same text as `apply_chat_template` of transformers gives. A template is code that came with a checkpoint: it runs in
Jinja's sandbox, sees plain JSON values alone, and may change none of them.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tfm.bundle import CheckedJson, brief
from tfm.errors import BundleError, InputError

Messages = Sequence[Mapping[str, Any]]
"""Each with "role" and "content", the first one first."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""What a message's reasoning is called, here and there; templates read the first, and gpt-oss's the second."""

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class TemplatedText(str):
    """A text that a template made: it has its special tokens, and gets no more of them when it is read."""


def is_messages(value: Any) -> bool:
    """Tell a chat from texts and ids."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def special_tokens(config: Mapping[str, CheckedJson] | None) -> dict[str, str]:
    """Read what a template is told of the special tokens, "bos_token" and its kin, from tokenizer_config.json."""
    found = {}
    for name in (f"{kind}_token" for kind in _SPECIAL):
        value = None if config is None or name not in config else config[name].value
        # Written as a text, or as an object where it says how it is stripped.
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


class ChatTemplate:
    """A checkpoint's chat_template.jinja."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Compile it.

        Raises:
            BundleError: jinja2 is not installed, or cannot read the template.
        """
        try:
            import jinja2
        except ImportError as error:
            raise BundleError(
                "messages need the package jinja2, which is not installed: pip install 'tfm-export[chat]'"
            ) from error
        self._errors, self._special = jinja2.TemplateError, dict(special)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise BundleError(f"the bundle's chat_template.jinja cannot be read: {error}") from error

    def render(self, messages: Messages, **variables: Any) -> TemplatedText:
        """Write messages as one text.

        Args:
            messages: JSON values, each with "role" and "content".
            **variables: What the template is told besides: add_generation_prompt, tools, documents, ….

        Raises:
            InputError: They are no messages, or the template refuses them.
        """
        if not is_messages(messages):
            raise InputError(f"messages must be a list of objects with role and content, but are {brief(messages)}")
        try:
            # Written and read again: what the template sees is plain, and nobody else's.
            plain = json.loads(json.dumps({"messages": list(map(dict, messages)), **variables}))
        except (TypeError, ValueError) as error:
            raise InputError(f"messages must be JSON values: {error}") from error
        plain["messages"] = [_with_reasoning(message) for message in plain["messages"]]
        try:
            return TemplatedText(self._template.render({**self._special, "tools": None, "documents": None, **plain}))
        except self._errors as error:
            raise InputError(f"the bundle's chat template refuses the messages: {error}") from error
        except Exception as error:  # a template is code of a checkpoint's: it may raise anything
            raise InputError(
                f"the bundle's chat template cannot write the messages ({type(error).__name__}: {error})"
            ) from error


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates (utils/chat_template_utils.py of version 5)."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Blocks that training marks as the model's own words: to us, their text."""

        # As Jinja has it.
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        # Jinja's own writes < and > as codes, for HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    # Templates are written for these: lines that are blocks alone leave no blank line behind.
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    told = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if told is None else {"thinking": told, **message, "reasoning_content": told}
