"""How a run ends before its time: by a token, by a deadline, or by Ctrl-C.

onnxruntime looks at `RunOptions.terminate` between nodes, so that a run ends within one node's time. Python handles
signals only once onnxruntime has returned, so Ctrl-C needs someone who is told of it earlier: one watchdog thread,
which waits for signals (by `signal.set_wakeup_fd`, while the main thread runs a graph) and for deadlines.
"""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from onnxruntime import RunOptions

from tfm.bundle import STOPPING, brief, kind_of
from tfm.errors import InputError, RunCancelledError, RunTimeoutError

T = TypeVar("T")

# Seconds, which are 31 years.
_FOREVER = 1e9


class CancelToken:
    """Ends the runs that it is given to, from any thread or signal handler, at any time, once and for all.

    A token that is cancelled already ends a run before it starts; one may serve many runs at once.

    Args:
        parent: A token whose cancelling cancels this one too, but not the reverse.
    """

    def __init__(self, parent: "CancelToken | None" = None) -> None:
        _check_token("parent", parent)
        self._parent = parent
        self._cancelled = False
        self._running: set[RunOptions] = set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called, on this token or its parent."""
        return self._cancelled or (self._parent is not None and self._parent.cancelled)

    def cancel(self) -> None:
        """End every run that holds this token, within the time of the node that it is in."""
        # No lock: a signal's handler that calls this could interrupt the very thread that holds it.
        # Other threads see a set's add, discard and copy as one step each.
        self._cancelled = True  # before the loop: a run that starts meanwhile sees this, or is seen by the loop
        for options in self._running.copy():
            options.terminate = True

    def _add(self, options: RunOptions) -> None:
        self._running.add(options)
        if self._parent is not None:
            self._parent._add(options)

    def _remove(self, options: RunOptions) -> None:
        self._running.discard(options)
        if self._parent is not None:
            self._parent._remove(options)


class Control:
    """What may end one call before its time, however many graphs it runs.

    Args:
        cancel: A token that ends it.
        timeout: Seconds from now after which it is ended; None: never.

    Raises:
        InputError: One is not of that kind, or the timeout is negative or NaN.
    """

    def __init__(self, cancel: CancelToken | None = None, timeout: float | None = None) -> None:
        _check_token("cancel", cancel)
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0
        ):
            raise InputError(f"timeout must be a number of seconds, at least 0, or None, but is {brief(timeout)}")
        self._cancel, self._timeout = cancel, timeout
        # An int may be larger than any float.
        self._deadline = math.inf if timeout is None or timeout > _FOREVER else monotonic() + timeout

    def check(self) -> None:
        """Return while the call may go on."""
        if self._cancel is not None and self._cancel.cancelled:
            raise RunCancelledError("the run was cancelled by its CancelToken; the model stays usable")
        if monotonic() >= self._deadline:
            raise RunTimeoutError(
                f"the run took longer than its timeout of {self._timeout:g} s; the model stays usable, "
                "so pass a longer timeout or less at once"
            )

    def _begin(self, options: RunOptions) -> None:
        # First told, then checked: what comes in between is seen by one of the two.
        if self._cancel is not None:
            self._cancel._add(options)
        if self._deadline < math.inf:
            watchdog().end_at(self._deadline, options)
        self.check()

    def _end(self, options: RunOptions) -> None:
        if self._cancel is not None:
            self._cancel._remove(options)
        if self._deadline < math.inf:
            watchdog().forget(options)


def _check_token(name: str, token: object) -> None:
    if token is not None and not isinstance(token, CancelToken):
        raise InputError(f"{name} must be a CancelToken or None, but is {kind_of(token)}")


def run(call: Callable[[RunOptions], T], control: Control | None = None) -> T:
    """Run a graph so that Ctrl-C, and `control` where there is one, end it within one node's time.

    Args:
        call: Runs the graph with the options that it gets; called again when a signal ended it whose handler did not
            raise, so it must give the same again.
        control: What else ends it.

    Raises:
        RunCancelledError: Its token was cancelled.
        RunTimeoutError: Its time is up.
        KeyboardInterrupt: Ctrl-C, or whatever the handler of SIGINT, SIGTERM or SIGHUP raises.
    """
    interruptible = threading.get_ident() == _main
    while True:
        # New ones for each try: `terminate` stays set.
        options = RunOptions()
        old = None
        try:
            if interruptible:
                # Python's signals are the main thread's, so that no other's run is ended by them.
                old = watchdog().watch_signals(options)
            if control is not None:
                control._begin(options)
            return call(options)
        except Exception:  # onnxruntime's errors have no common class below Exception
            # A run that was told to end fails with an error of onnxruntime's, which does not say why;
            # `check` below does.
            if not options.terminate:
                raise
        finally:
            if old is not None:
                signal.set_wakeup_fd(old)
            if control is not None:
                control._end(options)
        # It raises where the token or the deadline ended the run. Where neither did, a signal did.
        if control is not None:
            control.check()
        interruptible = False  # the signal's handler has returned; a second one does not undo the work again


_STOPPING = bytes(STOPPING)
_LONGEST_WAIT = 3600.0  # seconds; poll() overflows far above


class _Watchdog:
    """The one thread that ends runs at their deadlines, and the main thread's when a signal asks to stop."""

    def __init__(self) -> None:
        import socket  # not at the top: an app that only imports this needs none

        self._deadlines: dict[RunOptions, float] = {}
        self._wakes_at = math.inf
        self._interruptible: RunOptions | None = None
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)  # set_wakeup_fd wants that: a handler must not wait
        self._descriptor = self._sender.fileno()
        # A daemon, as it never ends by itself and must not keep the process alive.
        threading.Thread(target=self._watch, name="tfm watchdog", daemon=True).start()

    def end_at(self, deadline: float, options: RunOptions) -> None:
        """End a run when `monotonic` reaches the deadline, unless it is forgotten before."""
        # This before the comparison: a thread that looks just now sees it, or gets the byte.
        self._deadlines[options] = deadline
        if deadline < self._wakes_at:
            with contextlib.suppress(BlockingIOError):  # so full that it wakes anyway
                self._sender.send(b"\0")

    def forget(self, options: RunOptions) -> None:
        """Take a run's deadline away."""
        self._deadlines.pop(options, None)

    def watch_signals(self, options: RunOptions) -> int | None:
        """End the main thread's run when a signal asks to stop.

        Where another library already waits for signals in this way, as an event loop does, they stay with it.

        Returns:
            What `signal.set_wakeup_fd` must get when the run has ended; None: nothing, as this is not really the main
            thread, which `threading` cannot tell in a program that embeds Python.
        """
        # This before the descriptor: a signal in between already finds a run to end.
        self._interruptible = options
        try:
            old = signal.set_wakeup_fd(self._descriptor, warn_on_full_buffer=False)
        except ValueError:
            return None
        if old in (-1, self._descriptor):  # its own: Ctrl-C came before a run could take it back
            return -1
        signal.set_wakeup_fd(old)
        return None

    def _watch(self) -> None:
        while True:
            # Endless while it looks: who adds a deadline that this look misses then sends a byte.
            self._wakes_at = math.inf
            now = monotonic()
            deadlines = self._deadlines.copy()
            for options, deadline in deadlines.items():
                if deadline <= now:
                    options.terminate = True
                    self.forget(options)
            self._wakes_at = min((deadline for deadline in deadlines.values() if deadline > now), default=math.inf)
            # Never 0: such a socket does not wait at all, and raises another error than TimeoutError.
            self._receiver.settimeout(min(max(self._wakes_at - monotonic(), 0.001), _LONGEST_WAIT))
            try:
                received = self._receiver.recv(4096)
            except TimeoutError:
                continue
            if any(number in _STOPPING for number in received) and self._interruptible is not None:
                self._interruptible.terminate = True


_forks = 0
_main = threading.main_thread().ident
_only: _Watchdog | None = None
_making = threading.RLock()  # a signal's handler may run a graph too


def watchdog() -> _Watchdog:
    """Start this process's watchdog, or return it."""
    global _only
    # Looked at without the lock first: every run of the main thread comes here.
    if _only is None:
        with _making:
            if _only is None:
                _only = _Watchdog()
    return _only


def forks() -> int:
    """Count the forks that this process came out of since this module was imported: they end every other thread."""
    return _forks


def _start_afresh() -> None:
    global _forks, _main, _making, _only
    # The thread that forked is the child's main thread, whatever it was in the parent. Locks are
    # made anew, as one that another thread held would never be released.
    _forks += 1
    _main, _making = threading.get_ident(), threading.RLock()
    if _only is not None:
        old = signal.set_wakeup_fd(-1)  # signals to this process are none of the parent's runs' business
        if old not in (-1, _only._descriptor):
            signal.set_wakeup_fd(old)
        _only = None


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_start_afresh)
