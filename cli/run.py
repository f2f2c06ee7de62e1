"""`tfm run`: put texts into a bundle and print what comes out."""

import sys
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from tfm.errors import InputError

from .answers import KEYS, READ_TOGETHER, TAKES, WRITING, TaskRunner, shortened, to_json, to_text
from .items import GENERATING, Items
from .repl import converse
from .stdin_lines import as_utf8, read_lines
from .streams import input_encoding, put, said_warnings, say, say_json, styled, write_utf8

# Importing it loads onnxruntime, which --help must not wait for.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tfm.runtime import Model

MOST_COMPARED = 12
_INTERRUPTED = 130

_AT_LEAST_1 = click.IntRange(min=1)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--file", type=click.File("rb"), help="Read the lines of a file; - is standard input.")
@click.option(
    "--task",
    type=click.Choice([name.replace("_", "-") for name in KEYS]),
    help="What to make of a text [default: the first that the bundle has].",
)
@click.option("--max-new-tokens", type=_AT_LEAST_1, help="At most so many new tokens [default: the bundle's].")
@click.option("--stream", is_flag=True, help="Print what is generated while it is made.")
@click.option("--num-beams", type=_AT_LEAST_1, help="Search the likeliest text by so many beams.")
@click.option("--do-sample", is_flag=True, default=None, help="Draw tokens, rather than take the likeliest.")
@click.option("--temperature", type=float, help="Below 1: rather the likely tokens; above: the others too.")
@click.option("--top-k", type=_AT_LEAST_1, help="Draw from so many tokens; of labels, fills, answers, give so many.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that have this probability together.")
@click.option("--seed", type=click.IntRange(min=0), help="Draw the same again: the n-th text by SEED + n - 1.")
@click.option("--stop", multiple=True, help="End the text before this string; may be given more than once.")
@click.option("--json-schema", help="The text is JSON of this schema: the schema itself, or @FILE that holds it.")
@click.option("--regex", help="The whole text matches this regular expression.")
@click.option("--chat", is_flag=True, help="Each TEXT is a message; on a terminal, one after the other of one chat.")
@click.option("--system", help="What a chat begins with: who answers, and how.")
@click.option("--prompt", help="What goes in front of a text to embed: a name of the bundle's prompts, or words.")
@click.option("--dimensions", type=_AT_LEAST_1, help="Only the first so many dimensions of embeddings.")
@click.option("--normalize", is_flag=True, default=None, help="Embeddings of length 1.")
@click.option("--dtype", type=click.Choice(["float32", "binary", "ubinary"]), help="Embeddings by a bit a dimension.")
@click.option("--aggregation", type=click.Choice(["none", "simple", "first", "average", "max"]), help="Of entities.")
@click.option("--candidate-labels", help="Labels that classify-zero-shot chooses from, with commas between.")
@click.option("--hypothesis-template", help='What a text is to entail, with {} for the label ["This example is {}."].')
@click.option("--multi-label", is_flag=True, default=None, help="Several candidate labels may be right.")
@click.option("--max-answer-len", type=_AT_LEAST_1, help="Most tokens of an answer [default: 15].")
@click.option("--handle-impossible-answer", is_flag=True, default=None, help="That there is no answer is one too.")
@click.option("--language", help="Of what is said, for models of several, such as en.")
@click.option(
    "--return-timestamps", type=click.Choice(["word", "char", "segment"]), help="When each is said, in --json."
)
@click.option("--pairs", is_flag=True, help="Each TEXT or line is two texts that are read together, a tab between.")
@click.option("--jsonl", is_flag=True, help="Each TEXT or line is JSON: a text, a list of two, or an object.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object for TEXTs, else one per line.")
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True, help="fp32, int8, …: one that the bundle has.")
@click.option("--threads", type=_AT_LEAST_1, help="Threads within an operator [default: all usable cores].")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds for all TEXTs, or for lines read at once.")
def run(
    bundle: Path,
    texts: tuple[str, ...],
    file: BufferedReader | None,
    task: str | None,
    stream: bool,
    as_json: bool,
    threads: int | None,
    **settings: Any,
) -> None:
    """Run BUNDLE on each TEXT; without one, on the lines of --file or standard input, each as soon as it is there.

    On a terminal it asks for one text after the other; a decoder then goes on with one conversation.

    Each line gives one line: itself, a tab, and what became of it, line breaks escaped; a blank one gives a blank one.
    Where a bundle reads single words, each word counts as a line. Long texts are cut, though not in JSON.

    A line of rank is a query and its documents, one of answer a question and its context, with tabs between; one of
    classify-images, image-to-text, classify-audio or transcribe is the path of a file. With --jsonl they are lists, or
    objects with the keys query and documents, question and context, image, audio, or text and text_pair.
    """
    from tfm.runtime import GenerationSettings, Module, load, merged_settings

    # Before anything else is done with them: what is no UTF-8 has an error of its own.
    texts, settings["stop"] = tuple(map(as_utf8, texts)), tuple(map(as_utf8, settings["stop"]))
    _check_usage(texts, file, stream, as_json)
    # What was not given is left to the runtime's defaults, and is so not refused as without effect.
    # These are of the command, and no task's.
    given = {name: settings.pop(name) for name in ("provider", "precision", "pairs", "jsonl", "chat", "system")}
    chosen = {name: value for name, value in settings.items() if value not in (None, ())}
    if chosen.get("json_schema", "").startswith("@"):
        chosen["json_schema"] = _read_schema(Path(chosen["json_schema"][1:]))
    model = load(bundle, provider=given["provider"], precision=given["precision"], threads=threads)
    if isinstance(model, Module) and not model.tasks:
        raise click.UsageError("this bundle takes arrays, not texts: open it with tfm.runtime.load and call run()")
    chosen_task = _task(model, task)
    items = Items(
        task=chosen_task,
        pairs=given["pairs"],
        as_json=given["jsonl"],
        chat=given["chat"] or given["system"] is not None,
        system=given["system"],
    )
    answers = TaskRunner(model=model, task=chosen_task, settings=chosen, items=items)
    flags = [name for name, is_given in (("stream", stream), ("chat", items.chat)) if is_given]
    _check_settings(answers.task, [*chosen, *flags], given["pairs"])
    if answers.task in GENERATING:
        asked = {name: value for name, value in chosen.items() if name != "timeout"}
        generation = model.manifest.generation
        # Before any line is read.
        GenerationSettings(**merged_settings(generation.defaults if generation else {}, asked, one_text=stream))
    threads_text = "1 thread" if model.threads == 1 else f"{model.threads} threads"
    # On standard error, so that between pipes nothing but results is on standard output.
    say(styled(f"{model.provider} · {model.precision} · {threads_text}", dim=True), err=True)
    generation = model.manifest.generation
    # A JSON value and a message are one text, whatever spaces they have.
    whole = items.as_json or items.chat
    words = generation is not None and generation.split_on_whitespace and not whole
    write_utf8()
    try:
        with said_warnings():
            _run(answers, texts, file, words, stream, as_json)
    except KeyboardInterrupt:
        # Quietly: between pipes, Ctrl-C is how one leaves.
        sys.exit(_INTERRUPTED)


def _run(
    answers: TaskRunner, texts: tuple[str, ...], file: BufferedReader | None, words: bool, stream: bool, as_json: bool
) -> None:
    """Run what was given: TEXTs, a conversation, or lines."""
    if texts:
        _run_texts(answers, [text for line in texts for text in _split(line, words)], stream, as_json)
    elif file is None and _is_terminal(sys.stdin) and _is_terminal(sys.stdout):
        converse(answers, words=words, stream=stream, as_json=as_json)
    else:
        _run_lines(answers, _standard_input() if file is None else file, words, stream, as_json)


def _read_schema(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--json-schema: {path} cannot be read: {error}") from error


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _standard_input() -> BufferedReader:
    if sys.stdin is None:
        raise InputError("there is no standard input to read texts from; give TEXT or --file")
    return cast(BufferedReader, sys.stdin.buffer)


def _check_usage(texts: tuple[str, ...], file: BufferedReader | None, stream: bool, as_json: bool) -> None:
    if texts and file is not None:
        raise click.UsageError("TEXT and --file exclude each other")
    if texts and not any(text.strip() for text in texts):
        raise click.UsageError("every TEXT is blank")
    if stream and as_json:
        raise click.UsageError("--stream and --json exclude each other: an object is printed when it is complete")


def _task(model: "Model", asked: str | None) -> str:
    """Choose the task that was asked for, or the first; it must be one that the bundle has."""
    tasks: tuple[str, ...] = getattr(model, "tasks")  # noqa: B009 - every Model's but Module's
    folder = model.manifest.folder
    if not tasks:
        raise click.UsageError(f"{folder} has no task for texts: open it with tfm.runtime.load and call run()")
    if asked is None:
        return tasks[0]
    if asked.replace("-", "_") not in tasks:
        has = ", ".join(name.replace("_", "-") for name in tasks)
        raise click.UsageError(f"{folder} has no task {asked}; it has: {has}")
    return asked.replace("-", "_")


def _check_settings(task: str, names: list[str], pairs: bool) -> None:
    """Refuse what a task does not take, and ask for what it needs."""
    asked = task.replace("_", "-")
    # A tab would be read as part of the text, without a word.
    if pairs and task not in READ_TOGETHER:
        raise click.UsageError(f"--pairs is for tasks that read two texts together; the task here is {asked}")
    for name in names:
        if not _takes(task, name):
            raise click.UsageError(f"--{name.replace('_', '-')} is for {_whose(name)}; the task here is {asked}")
    if task == "classify_zero_shot" and "candidate_labels" not in names:
        raise click.UsageError("classify-zero-shot needs --candidate-labels, such as 'sport, politics'")


def _whose(name: str) -> str:
    """Say which tasks take a setting."""
    of = [other.replace("_", "-") for other, takes in TAKES.items() if name in takes and name != "top_k"]
    return ", ".join(of) or "bundles that generate"


def _takes(task: str, name: str) -> bool:
    if name == "timeout" or name in TAKES.get(task, ()):
        return True
    # What is not another task's is a setting of generating.
    generates = task in (*GENERATING, *WRITING)
    return generates and (name == "top_k" or not any(name in takes for takes in TAKES.values()))


def _split(line: str, words: bool) -> list[str]:
    """Make every word a text of its own where the bundle reads words; a blank line stays one blank text."""
    return (line.split() or [""]) if words else [line]


def _run_texts(answers: TaskRunner, texts: list[str], stream: bool, as_json: bool) -> None:
    if stream:
        for number, text in enumerate(texts):
            _stream(answers, text, number)
        return
    results = answers.of(texts)
    if as_json:
        model, task = answers.model, answers.task
        pairs = zip(texts, results, strict=True)
        objects = [to_json(task, text, result, answers.items) for text, result in pairs]
        say_json({"provider": model.provider, "precision": model.precision, "results": objects})
        return
    shown = [shortened(text) for text in texts]
    width = max(map(len, shown))
    for number, (text, result) in enumerate(zip(shown, results, strict=True), 1):
        place = f"{number:>3}  " if answers.task == "embed" else ""
        put(f"{place}{text:<{width}}  {to_text(answers.task, result)}".rstrip())
    if _are_compared(answers, results):
        _print_similarities(results)


def _run_lines(answers: TaskRunner, source: BufferedReader, words: bool, stream: bool, as_json: bool) -> None:
    """Print what becomes of each line, in order, as soon as it is known."""
    typed = sys.stdin is not None and source is sys.stdin.buffer
    # `--file -` is standard input too, and read by the same rule.
    name = "standard input" if typed else source.name
    line = number = 0
    for batch in read_lines(source, name, encoding=input_encoding() if typed else "utf-8"):
        # Each text with the number of its line: a line of words is several texts.
        items = [(place, text) for place, one in enumerate(batch, line + 1) for text in _split(one, words)]
        line, done = line + len(batch), 0
        texts = [text for _, text in items]
        try:
            if stream:
                for done, text in enumerate(texts):
                    _stream(answers, text, number + done)
            else:
                for text, result in zip(texts, answers.in_order(texts, number), strict=True):
                    _print_row(answers, text, result, as_json)
                    done += 1
        except InputError as error:
            # `done` is how many results were printed, and so the place of the one that was refused.
            raise InputError(f"line {items[done][0]} of {name}: {error}") from error
        number += len(items)
    if not line:
        say(styled(f"{name} has no lines", dim=True), err=True)


def _print_row(answers: TaskRunner, text: str, result: Any, as_json: bool) -> None:
    if as_json:
        say_json(to_json(answers.task, text, result, answers.items))
    else:
        put("" if result is None else f"{shortened(text)}\t{to_text(answers.task, result)}")


def _stream(answers: TaskRunner, text: str, number: int) -> None:
    for part in answers.parts(text, number):
        put(part, nl=False)
    say()


def _are_compared(answers: TaskRunner, results: list[Any]) -> bool:
    """Whether how near embeddings are to each other is shown: of a few, and not of their bits."""
    if answers.task != "embed" or answers.settings.get("dtype", "float32") != "float32":
        return False
    return 1 < len(results) <= MOST_COMPARED and all(row is not None for row in results)


def _print_similarities(rows: "list[NDArray[np.float32]]") -> None:
    """Print the cosine similarity of each two embeddings."""
    # A vector of zeros has no direction; its cosine is shown as 0.
    units = [row / max(float((row**2).sum() ** 0.5), 1e-12) for row in rows]
    say("\ncosine similarity")
    say("   " + "".join(f"{number:>8}" for number in range(1, len(rows) + 1)))
    for number, unit in enumerate(units, 1):
        say(f"{number:>3}" + "".join(f"{float(unit @ other):>8.3f}" for other in units))
