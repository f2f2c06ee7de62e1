"""Messages of a chat: written by a checkpoint's own template as transformers writes them, from wherever it stands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_bundles import by_byte
from tfm.bundle import read_manifest, renew_manifest
from tfm.errors import BundleError, CheckpointError, InputError
from tfm.export.template_file import put_chat_template
from tfm.export.verify.ask_library import Reference, ask_library
from tfm.export.verify.library import compare_with_library
from tfm.runtime import Decoder, load

transformers = pytest.importorskip("transformers", reason="the library: pip install transformers")

TURNS = """{%- for message in messages %}
    {{- '[' + message.role[0] + ']' + (message.content | trim) + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[a]' }}{% endif %}"""

TEMPLATES = {
    "turns": TURNS,
    "blocks": """{% for message in messages %}
    {% if message['role'] == 'system' %}
{{ bos_token }}: {{ message['content'] }}
    {% else %}
        {% if loop.index0 > 8 %}{% break %}{% endif %}
{{ message['role'] }} {{ message['content'] }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}a:{% endif %}""",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content | upper }}{% endif %}{% endfor %}",
    "tools": "{% if tools %}{{ tools | tojson }}{{ tools | tojson(indent=2) }}{% endif %}{{ documents is none }}"
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content | default('-') }}{{ m.content }}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": " abc é\n"}],
    "several": [
        {"role": "system", "content": "be <b> & 'c'"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "thinking": "d"},
        {"role": "user", "content": "c"},
    ],
}
ADD = [{"type": "function", "function": {"name": "add", "description": "a < b é"}}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, generation_bundle: Callable[[str], tuple[Path, Any]]) -> Path:
    """A decoder's checkpoint, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    shutil.copytree(generation_bundle("llama")[0].parent / "checkpoint", folder)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=by_byte(), **tokens).save_pretrained(folder)
    return folder


Opened = Callable[[str], tuple[Decoder, Path]]


@pytest.fixture
def opened(tmp_path: Path, checkpoint: Path, generation_bundle: Callable[[str], tuple[Path, Any]]) -> Opened:
    """A bundle of a checkpoint with a template, and the checkpoint."""

    def of(template: str) -> tuple[Decoder, Path]:
        folder, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
        for made, source in ((folder, checkpoint), (bundle, generation_bundle("llama")[0])):
            shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(source, made)
        (folder / "chat_template.jinja").write_text(template)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(folder / name, bundle / name)
        renew_manifest(read_manifest(generation_bundle("llama")[0]), bundle, {})
        model = load(bundle, provider="cpu", threads=1)
        assert isinstance(model, Decoder)
        return model, folder

    return of


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_is_written_as_transformers_writes_it(opened: Opened, template: str, chat: str) -> None:
    model, folder = opened(TEMPLATES[template])
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "tools": ADD, "enable_thinking": False},
    ):
        expected = words.apply_chat_template(CHATS[chat], tokenize=False, **options)
        found = model.apply_chat_template(CHATS[chat], **options)
        assert found == expected
        ids = words.apply_chat_template(CHATS[chat], return_dict=False, **options)
        assert model.tokenize([found]) == [ids]  # and no special tokens are added to those that it has
    assert isinstance(CHATS[chat][0]["content"], str)


def test_what_is_generated_follows_the_chat(opened: Opened) -> None:
    model, _ = opened(TURNS)
    one, several = CHATS["one"], CHATS["several"]
    ids = [model.tokenize([model.apply_chat_template(chat)])[0] for chat in (one, several)]
    expected = [model.tokenize([text])[0][1:] for text in model.generate([one, several], 6)]
    assert [row[:6] for row in expected] == [[token for token in row if token > 3] for row in model.generate(ids, 6)]
    assert "".join(model.stream(one, 6)) == model.generate(one, 6)[0]


def test_a_conversation_reads_only_what_is_new(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = opened(TURNS)
    talk, chat = model.conversation(), list(CHATS["one"])
    read: list[int] = []
    state = type(talk._state)
    whole = state.read
    monkeypatch.setattr(
        state, "read", lambda self, rows, control=None: (read.append(len(rows[0])), whole(self, rows, control))[1]
    )
    for text in ("q", "d"):
        answer = "".join(talk.reply(chat, 4))
        assert answer == model.generate(chat, 4)[0]
        chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": text}]
    begun = len(model.tokenize([model.apply_chat_template(CHATS["one"])])[0])
    assert read[0] == begun
    assert read[2] < begun + 6  # the second reply; without the cache it would read both messages again
    # Another chat, and the same again: what is not common is forgotten.
    other = [{"role": "user", "content": "zzz"}]
    assert "".join(talk.reply(other, 4)) == model.generate(other, 4)[0]
    assert "".join(talk.reply(other, 4)) == model.generate(other, 4)[0]


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        ("{{ raise_exception('first a user') }}", CHATS["one"], "chat template refuses the messages: first a user"),
        ("{{ messages[0].a.b.c }}", CHATS["one"], "refuses the messages: 'dict object' has no attribute 'a'"),
        ("{{ 1 / 0 }}", CHATS["one"], r"cannot write the messages \(ZeroDivisionError: "),
        ("{{ messages.append(1) }}", CHATS["one"], "refuses the messages: .*unsafe"),
        ("{{ ''.__class__.__mro__ }}", CHATS["one"], "refuses the messages: .*unsafe"),
        (TURNS, [{"role": "user", "content": b"x"}], "messages must be JSON values"),
        (TURNS, "hello", "messages must be a list of objects with role and content"),
        (TURNS, [], "messages must be a list of objects with role and content"),
    ],
)
def test_what_a_template_refuses(opened: Opened, template: str, messages: Any, words: str) -> None:
    model, _ = opened(template)
    with pytest.raises(InputError, match=words):
        model.apply_chat_template(messages)


def test_a_template_that_is_none(opened: Opened) -> None:
    model, _ = opened("{% for %}")
    with pytest.raises(BundleError, match=r"chat_template\.jinja cannot be read: "):
        model.generate(CHATS["one"])


def test_without_a_template(generation_bundle: Callable[[str], tuple[Path, Any]]) -> None:
    model = load(generation_bundle("llama")[0], provider="cpu", threads=1)
    assert isinstance(model, Decoder)
    with pytest.raises(InputError, match=r"has no chat_template\.jinja, so it takes no messages; "):
        model.generate(CHATS["one"])


def test_without_jinja(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = opened(TURNS)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(BundleError, match=r"messages need the package jinja2.*pip install 'tfm-export\[chat\]'"):
        model.generate(CHATS["one"])


def test_an_export_compares_a_chat_too(opened: Opened) -> None:
    model, folder = opened(TURNS)
    reference = ask_library(folder, model)
    assert isinstance(reference, Reference), reference
    assert reference.inputs[-1].endswith("?</s>[a]")
    assert compare_with_library(reference, model)[0].passed
    # As where the bundle's template were another than the checkpoint's.
    (folder / "chat_template.jinja").write_text(TURNS.replace("[a]", "[b]"))
    other = ask_library(folder, model)
    assert isinstance(other, Reference), other
    assert not compare_with_library(other, model)[0].passed


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"chat_template": "x{{ a }}\r\n"}, "x{{ a }}\r\n"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
        ({"chat_template": [{"name": "rag", "template": "r"}]}, None),
        ({"chat_template": None}, None),
        ({}, None),
    ],
)
def test_a_template_within_tokenizer_config(tmp_path: Path, config: dict[str, Any], expected: str | None) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    put_chat_template([tmp_path], None, bundle)
    path = bundle / "chat_template.jinja"
    assert (path.read_bytes().decode() if path.exists() else None) == expected


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(CheckpointError, match="chat_template must be a text, or a list of named ones"):
        put_chat_template([tmp_path], None, tmp_path)
