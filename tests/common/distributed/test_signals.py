import os
import signal
from types import SimpleNamespace

import pytest

from common.distributed import signals as interrupt
from common.distributed.signals import GracefulShutdown, InterruptibleLoader
from common.errors import Stopped


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_waits_for_a_place_to_save(number, status):
    with GracefulShutdown() as stop, stop.deferred():
        stop.check()
        stop.check_now()
        send(number)
        for check in (stop.check, stop.check_now):
            with pytest.raises(Stopped, match=number.name) as stopped:
                check()
            assert stopped.value.exit_status == status


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_with_nothing_to_save_it_ends_at_once(number, error):
    with GracefulShutdown() as stop:
        with pytest.raises(error):
            send(number)
        with stop.deferred():
            pass
        if number == signal.SIGTERM:
            send(number)  # it is ending already


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_would_not_go_on_is_not_to_be_started_again(number):
    with GracefulShutdown(resumable=False) as stop, stop.deferred():
        send(number)
        with pytest.raises(Stopped) as stopped:
            stop.check()
    assert stopped.value.exit_status == 128 + number


def test_a_second_interrupt_ends_at_once(monkeypatch):
    with GracefulShutdown() as stop, stop.deferred():
        send(signal.SIGINT)
        send(signal.SIGINT)  # the launcher's copy of the same keypress
        monkeypatch.setattr(interrupt, "SAME_KEYPRESS", -1.0)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.received_signal == signal.SIGINT


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with GracefulShutdown():
        pass
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


class Batches(list):
    batch_sampler = SimpleNamespace()


def test_a_loop_ends_early_and_then_stops():
    beats = []
    with GracefulShutdown() as stop, stop.deferred():
        loader = InterruptibleLoader(
            Batches("abc"), stop, lambda activity, synchronized: beats.append(synchronized)
        )
        assert (len(loader), loader.batch_sampler) == (3, Batches.batch_sampler)
        assert list(loader) == ["a", "b", "c"]
        assert beats == [False, False, False, True]
        batches = iter(loader)
        assert next(batches) == "a"
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            next(batches)
