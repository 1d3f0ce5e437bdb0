import os
import signal
from types import SimpleNamespace

import pytest

from common.distributed import signals
from common.distributed.signals import GracefulShutdown, InterruptibleLoader
from common.errors import Stopped


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "resumable", "status"),
    [
        (signal.SIGTERM, True, 75),
        (signal.SIGUSR1, True, 75),
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGUSR1, False, 138),
    ],
)
def test_deferred_signal_raises_in_check(number, resumable, status):
    with GracefulShutdown(resumable) as shutdown, shutdown.deferred():
        shutdown.check()
        shutdown.check_now()
        send(number)
        for check in (shutdown.check, shutdown.check_now):
            with pytest.raises(Stopped, match=number.name) as stopped:
                check()
            assert stopped.value.exit_status == status


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_signal_raises_at_once_outside_deferred(number, error):
    with GracefulShutdown() as shutdown:
        with pytest.raises(error):
            send(number)
        with shutdown.deferred():
            pass
        if number == signal.SIGTERM:
            send(number)  # ignored: the run is stopping


def test_second_sigint_raises_at_once(monkeypatch):
    with GracefulShutdown() as shutdown, shutdown.deferred():
        send(signal.SIGINT)
        send(signal.SIGINT)  # the copy of the same keypress that the launcher forwards
        monkeypatch.setattr(signals, "SAME_KEYPRESS", -1.0)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert shutdown.received_signal == signal.SIGINT


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with GracefulShutdown():
        pass
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


class Batches(list):
    batch_sampler = SimpleNamespace()


def test_interruptible_loader_stops_after_a_signal():
    synchronized = []
    with GracefulShutdown() as shutdown, shutdown.deferred():
        loader = InterruptibleLoader(Batches("abc"), shutdown, lambda _, value: synchronized.append(value))
        assert (len(loader), loader.batch_sampler) == (3, Batches.batch_sampler)
        assert list(loader) == ["a", "b", "c"]
        assert synchronized == [False, False, False, True]
        batches = iter(loader)
        assert next(batches) == "a"
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            next(batches)
