import errno
import logging
import re
import signal
import subprocess
import sys

import pytest

from common.cli.run import log_file, run
from common.errors import CheckpointError, ConfigError, Stopped, UsageError


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("no such file"), 2, "error: no such file\n"),
        (UsageError("--gpus 7"), 2, "error: --gpus 7\n"),
        (CheckpointError("damaged"), 1, "error: damaged\n"),
        (Stopped(signal.SIGTERM), 75, "stopped by SIGTERM\n"),
        (Stopped(signal.SIGTERM, resumable=False), 143, "stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left", "x/events"), 1, "error: x/events: No space left\n"),
    ],
)
def test_run_reports_expected_errors_without_traceback(capsys, error, status, message):
    def fail():
        raise error

    assert run(fail) == status
    assert capsys.readouterr().err == message


def test_run_keeps_traceback_of_bugs():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


@pytest.mark.parametrize(("error", "status"), [(ConfigError("x"), 2), (ZeroDivisionError("x"), 1)])
def test_run_leaves_the_report_to_the_first_process(tmp_path, monkeypatch, capsys, error, status):
    def fail():
        raise error

    (tmp_path / "reported").touch()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "1" / "error.json"))
    assert run(fail) == status
    assert capsys.readouterr().err == ""


@pytest.mark.integration
def test_run_does_not_import_torch():
    code = "import sys, common.cli.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_log_file_on_full_disk_keeps_the_first_error(tmp_path, monkeypatch):
    def full(handler):
        handler.stream.close()
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(logging.FileHandler, "close", full)
    with pytest.raises(CheckpointError), log_file(tmp_path, "x.yaml"):
        raise CheckpointError("no space for the checkpoint")


def test_log_file_removes_its_handler(tmp_path):
    before = list(logging.getLogger().handlers)
    with log_file(tmp_path, "x/some.cfg.yaml"):
        logging.getLogger("common").warning("hello")
    assert logging.getLogger().handlers == before
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("some.cfg_")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} hello\n", path.read_text())
