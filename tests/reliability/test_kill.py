"""A handful of the moments of kill.py, which is run by itself at a hundred."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="it forks, and looks for survivors in /proc")
def test_killed_at_a_few_moments_all_is_whole() -> None:
    command = [sys.executable, Path(__file__).with_name("kill.py"), "--quick", "--only", "quantize"]
    done = subprocess.run([*command, "--moments", "2", "--polite", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGKILL       2 moments" in done.stdout
    assert done.stdout.endswith("0 violations\n")
