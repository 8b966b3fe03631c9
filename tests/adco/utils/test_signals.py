"""Ctrl-C while processes are started: they do not see it, and it is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from adco.utils.signals import starting_processes


@pytest.fixture(autouse=True)
def default_handler():
    """Python's handler of Ctrl-C: a process that a shell starts with `&` ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


CHILD = "import signal, time; print('ready', flush=True); time.sleep(0.2); print('alive')"


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_waits_until_the_processes_are_started_and_they_do_not_see_it(threads):
    done = threading.Event()
    for _ in range(threads):
        threading.Thread(target=done.wait, daemon=True).start()  # of the threads there are any may take the signal
    whole, before = False, signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), starting_processes():
        started = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
        assert started.stdout.readline() == "ready\n"
        os.kill(started.pid, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        whole = started.stdout.readline() == "alive\n"
    done.set()
    assert whole
    assert started.wait() == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
