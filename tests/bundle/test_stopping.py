"""One signal is heeded once, however often it is sent; one that is ignored stays ignored."""

import signal
import threading
from collections.abc import Iterator

import pytest

from tfm.bundle import stopping
from tfm.bundle.stopping import STOPPING, Patience


@pytest.fixture(autouse=True)
def came() -> Iterator[list[int]]:
    """What the handlers that were there before are told."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    seen: list[int] = []
    for number in STOPPING:
        signal.signal(number, lambda number, _: seen.append(number))
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(stopping, "monotonic", lambda: now[0])
    return now


def send(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)


def test_all_that_ask_to_stop_are_known() -> None:
    assert {number.name for number in STOPPING} == {"SIGINT", "SIGTERM", "SIGHUP"}


def test_the_first_is_heeded_and_whoever_means_it_tries_again(came: list[int], clock: list[float]) -> None:
    patience = Patience()
    patience.start()
    send(signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    assert came == [signal.SIGINT]
    clock[0] += 2.9
    send(signal.SIGINT)
    assert came == [signal.SIGINT]
    clock[0] += 0.1
    send(signal.SIGTERM, signal.SIGTERM)
    assert came == [signal.SIGINT, signal.SIGTERM]
    patience.stop()
    send(signal.SIGINT)  # the process is about to end
    assert came == [signal.SIGINT, signal.SIGTERM]


def test_what_is_held_back_comes_once_and_after(came: list[int], clock: list[float]) -> None:
    patience = Patience()
    patience.start()
    with patience.hold():
        with patience.hold():
            send(signal.SIGTERM, signal.SIGINT)
            clock[0] += 10
            send(signal.SIGINT)
        assert came == []
    assert came == [signal.SIGTERM]
    with patience.hold():
        pass
    assert came == [signal.SIGTERM]


def test_where_nothing_came_all_is_as_before(came: list[int]) -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    patience = Patience()
    patience.start()
    assert [signal.getsignal(number) for number in STOPPING] != before
    patience.stop()
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_a_new_one_does_not_wait_for_an_old_one(came: list[int], clock: list[float]) -> None:
    for count in (1, 2, 3):
        patience = Patience()
        patience.start()
        send(signal.SIGINT)
        patience.stop()
        assert came == [signal.SIGINT] * count


def test_one_that_was_heeded_just_now(came: list[int], clock: list[float]) -> None:
    Patience().start(heeded=True)
    send(signal.SIGINT)
    assert came == []
    clock[0] += 3
    send(signal.SIGINT)
    assert came == [signal.SIGINT]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_has_no_handler_is_left_alone(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGTERM, handler)
    patience = Patience()
    patience.start()
    assert signal.getsignal(signal.SIGTERM) == handler
    patience.stop()
    assert signal.getsignal(signal.SIGTERM) == handler


def test_in_another_thread_nothing_is_changed(came: list[int]) -> None:
    before = [signal.getsignal(number) for number in STOPPING]

    def work() -> None:
        patience = Patience()
        patience.start()
        with patience.hold():
            pass
        patience.stop()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in STOPPING] == before
    send(signal.SIGINT)
    assert came == [signal.SIGINT]
