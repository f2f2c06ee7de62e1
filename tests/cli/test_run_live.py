"""`tfm run` as a process of its own: between pipes, and on a terminal with a person who types."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

RUN = "from tfm.cli import main; main(['run', '--provider', 'cpu', '--threads', '1', *sys.argv[1:]])"
CONTROLLING = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {}" + RUN  # Ctrl-C then is SIGINT
SLOW = """
import time
from tfm.runtime import Decoder
fast = Decoder._parts
def slow(*args):
    for part in fast(*args):
        yield part
        time.sleep(3600)
Decoder._parts = slow
"""
PATIENCE = 60  # seconds, for what takes less than 2


def process(*args, **streams):
    return subprocess.Popen([sys.executable, "-c", f"import sys; {RUN}", *args], **streams)


@pytest.fixture
def piped(make_bundle):
    """Start it between pipes; ended at the end of the test."""
    running = []

    def start(kind, *args):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        one = process(make_bundle(kind), *args, **pipes)
        running.append((one, threading.Timer(PATIENCE, one.kill)))
        running[-1][1].start()
        return one

    yield start
    for one, killer in running:
        killer.cancel()
        one.kill()
        one.wait()
        for stream in (one.stdin, one.stdout, one.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def test_a_result_does_not_wait_for_the_next_line(piped):
    run = piped("copier")
    for line, result in ((b"ab\n", b"ab\ta b\n"), (b"\n", b"\n"), (b"d\n", b"d\td\n")):
        run.stdin.write(line)
        run.stdin.flush()
        assert run.stdout.readline() == result
    run.stdin.write(b"e")  # nobody has to end the last line
    rest, errors = run.communicate(timeout=PATIENCE)
    assert (run.returncode, rest, errors) == (0, b"e\te\n", b"cpu \xc2\xb7 fp32 \xc2\xb7 1 thread\n")


@pytest.mark.parametrize("args", [[], ["--json"], ["--stream"]])
def test_it_ends_quietly_when_nobody_reads_on(piped, args):
    run = piped("copier", *args)
    ended = threading.Event()

    def write():
        try:
            while True:
                run.stdin.write(b"ab\n" * 1000)
                run.stdin.flush()
        except BrokenPipeError:
            ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert b"a b" in run.stdout.readline()
    run.stdout.close()
    assert run.wait(PATIENCE) == 141
    writer.join(PATIENCE)
    assert ended.is_set()
    assert run.stderr.read() == b"cpu \xc2\xb7 fp32 \xc2\xb7 1 thread\n"


def test_ctrl_c_ends_a_pipe_quietly(piped):
    run = piped("copier")
    run.stdin.write(b"a\n")
    run.stdin.flush()
    assert run.stdout.readline() == b"a\ta\n"
    run.send_signal(signal.SIGINT)
    assert run.wait(PATIENCE) == 130
    assert (run.stdout.read(), run.stderr.read()) == (b"", b"cpu \xc2\xb7 fp32 \xc2\xb7 1 thread\n")


def test_memory_is_flat(piped):
    run, counts = piped("encoder"), []

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{run.pid}/status").read_text())[1]) / 1024

    def write():
        run.stdin.write(b"a b c d\n" * 40_000)
        run.stdin.flush()

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(1, 40_001):
        assert run.stdout.readline()
        if number in (5_000, 40_000):
            counts.append(resident())
    writer.join(PATIENCE)
    assert counts[1] - counts[0] <= 4, f"{counts} MiB"  # seen: 0.6; results that were kept would take more


class Terminal:
    """A terminal on which it runs."""

    def __init__(self, bundle, *args, before=""):
        self._master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        code = CONTROLLING.format(f"exec({before!r}); ")
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        command = [sys.executable, "-c", code, bundle, *args]
        env = os.environ | {"TERM": "dumb"}
        self.process = subprocess.Popen(command, start_new_session=True, env=env, **streams)
        os.close(slave)
        self._seen = ""

    def type(self, text):
        os.write(self._master, text.encode())

    def until(self, text):
        """Return what is printed up to and with a text."""
        end = time.monotonic() + PATIENCE
        while text not in self._seen:
            assert select.select([self._master], [], [], max(end - time.monotonic(), 0))[0], f"only {self._seen!r}"
            try:
                self._seen += re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", os.read(self._master, 4096).decode())
            except OSError:  # Linux: the other end is closed
                raise AssertionError(f"it ended after {self._seen!r}") from None
        found, self._seen = self._seen.split(text, 1)
        return (found + text).replace("\r", "")

    def interrupt(self):
        """Press Ctrl-C until there is a prompt: one just before Python waits for a key, it sees with the next."""
        for _ in range(PATIENCE):
            self.type("\x03")
            if select.select([self._master], [], [], 1)[0]:
                break
        self.until("> ")

    def answer(self, text):
        self.type(text + "\n")
        return self.until("> ").removesuffix("> ")

    def leave(self):
        self.type("\x04")
        assert self.process.wait(PATIENCE) == 0

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(make_bundle):
    opened = []

    def start(kind, *args, before=""):
        # A path is of a bundle that is there.
        opened.append(Terminal(kind if os.sep in kind else make_bundle(kind), *args, before=before))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_conversation(terminal):
    person = terminal("counter", "--max-new-tokens", "1")
    assert "/reset forgets the conversation" in person.until("> ")
    assert person.answer("ab") == "c\n"
    assert person.answer("") == ""
    assert person.answer("d") == "e\n"
    assert person.answer("x").startswith("'x' in the text 'x' (at 0) is not in the model's vocabulary")
    assert person.answer("abcd").startswith("the conversation has 5 tokens, so 4 more do not fit into the 8")
    assert person.answer("/reset") == ""
    assert person.answer("abcd") == "e\n"
    person.leave()


def test_a_chat(terminal, chatty):
    person = terminal(chatty(), "--max-new-tokens", "1", "--chat")
    assert "/reset forgets the conversation" in person.until("> ")
    assert person.answer("ab") == "c\n"
    assert person.answer("d") == "e\n"
    assert person.answer("x").startswith("'x' in the text 'abcdex' (at 5) is not in the model's vocabulary")
    assert person.answer("f") == "g\n"  # what was refused is no part of it
    assert person.answer("/reset") == ""
    assert person.answer("b") == "c\n"
    person.leave()


def test_an_answer_is_printed_while_it_is_made_and_ended_by_ctrl_c(terminal):
    person = terminal("counter", "--max-new-tokens", "1", before=SLOW)
    person.until("> ")
    for text, said in (("a", "b"), ("c", "d")):
        person.type(text + "\n")
        person.until(said)
        person.type("\x03")
        person.until("> ")
    person.leave()


def test_ctrl_c_where_nothing_runs_stays(terminal):
    person = terminal("counter")
    person.until("> ")
    person.type("abc")
    person.interrupt()
    assert person.answer("g") == "h\n"
    person.leave()


def test_the_last_line_is_recalled(terminal):
    person = terminal("copier")
    assert "/reset" not in person.until("> ")
    assert person.answer("ab c") == "a b\nc\n"
    person.type("\x10\n")  # Ctrl-P: the line before
    assert person.until("> ").endswith("a b\nc\n> ")
    person.leave()


@pytest.mark.parametrize(
    ("kind", "args", "answer"),
    [
        ("encoder", [], "[4]  "),
        ("encoder", ["--json"], '{"text": "g", "embedding": ['),
        ("counter", ["--json"], '{"text": "g", "output": "h"}\n'),
        ("counter", ["--num-beams", "2"], "h\n"),
        ("copier", ["--stream"], "g\n"),
    ],
)
def test_other_answers(terminal, kind, args, answer):
    person = terminal(kind, *args)
    person.until("> ")
    for _ in range(2):
        assert person.answer("g").startswith(answer)
    person.leave()
