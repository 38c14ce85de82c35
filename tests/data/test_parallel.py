"""Processes that write: what ends them leaves nothing half-written."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

_WRITE = """
import sys, time
from pathlib import Path
from cogview3.checkpoints import whole_file
from cogview3.data.parallel import _to_the_end, begin_writer
def write(path):
    with whole_file(Path(path)) as temporary:
        temporary.write_text("half")
        print("at it", flush=True)
        time.sleep(60)
begin_writer()
try:
    _to_the_end(write, sys.argv[1])
finally:
    print("goes on", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there it is ended at once")
def test_a_worker_that_is_ended_clears_up_and_does_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITE, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "at it\n"
        assert len(list(tmp_path.iterdir())) == 1
        worker.send_signal(signal.SIGTERM)
        assert worker.stdout.read() == ""
    assert worker.returncode == 143
    assert list(tmp_path.iterdir()) == []
