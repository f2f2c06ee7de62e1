"""`tfm run BUNDLE` on a terminal: one answer after the other."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tfm.errors import TfmError

from .answers import TaskRunner, to_json, to_text
from .items import GENERATING, Items
from .streams import put, say, say_json, styled

_RESET = "/reset"


def converse(answers: TaskRunner, *, words: bool, stream: bool, as_json: bool) -> None:
    """Answer what a person types until Ctrl-D; Ctrl-C ends an answer, an error does too.

    With a decoder, all that is typed is one text, of which nothing is read twice, unless it searches by beams.

    Args:
        answers: What is made of a text.
        words: Whether each word is a text of its own.
        stream: Whether what is generated is printed while it is made; with a decoder it always is.
        as_json: Print objects for machines.
    """
    from tfm.runtime import Decoder

    # Not everywhere; input() then edits no line and recalls none.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    model, items = answers.model, answers.items or Items(task=answers.task)
    decoder = model if isinstance(model, Decoder) and answers.settings.get("num_beams", 1) == 1 else None
    conversation = None if decoder is None else decoder.conversation()
    forgets = f"{_RESET} forgets the conversation, " if decoder else ""
    say(styled(f"Ctrl-C ends an answer, {forgets}Ctrl-D leaves", dim=True), err=True)
    number = 0
    # All messages of a chat, which each answer is made of.
    said: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ")
            if decoder is not None and line.strip() == _RESET:
                # A new one, as a conversation cannot be rewound to nothing.
                conversation, said = decoder.conversation(), []
                continue
            # In a conversation a line goes on with one text, so its words are no texts of their own.
            texts = line.split() if words and conversation is None else [line] if line.strip() else []
            for text in texts:
                parts: Iterator[str] | None = None
                asked = [*said, {"role": "user", "content": text}] if said else items.begun(text)
                if conversation is not None:
                    parts = conversation.reply(asked if items.chat else text, **answers.seeded(number))
                elif stream and answers.task in GENERATING:
                    parts = answers.parts(text, number)
                answer = _print(answers, text, number, parts, as_json)
                # Only now: an answer that was ended is no part of the chat.
                said = [*asked, {"role": "assistant", "content": answer}] if items.chat else []
                number += 1
        except EOFError:
            say()
            return
        # It ends the answer, or clears the line; a person leaves by Ctrl-D.
        except KeyboardInterrupt:
            say()
        except (TfmError, UnicodeDecodeError) as error:
            say(styled(f"{error}", fg="red"), err=True)


def _print(answers: TaskRunner, text: str, number: int, parts: Iterator[str] | None, as_json: bool) -> str:
    """Print what became of a text; give it, as far as it is a text."""
    if parts is not None and not as_json:
        given = []
        for part in parts:
            put(part, nl=False)
            given.append(part)
        say()
        return "".join(given)
    result: Any = answers.of([text], number)[0] if parts is None else "".join(parts)
    if as_json:
        say_json(to_json(answers.task, text, result, answers.items))
    else:
        put(to_text(answers.task, result))
    return str(result)
