"""The soak harness, for seconds: that it finds nothing, and that it would find something."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.soak import soak

SOAK = Path(__file__).parents[1] / "reliability" / "soak.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")


def test_mixed_work_of_many_threads(make_bundle):
    bundles = [make_bundle("encoder"), make_bundle("copier")]
    command = [sys.executable, str(SOAK), *map(str, bundles), "--threads", "8", "--minutes", "0.1", "--opens", "60"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 mismatches\n" in done.stdout
    for what in ("embed compared", "generate compared", "refused", "closed under others", "opened and closed"):
        assert what in done.stdout


def test_a_wrong_answer_is_found(make_bundle, monkeypatch, capsys):
    from tfm.runtime import Encoder

    embed, calls = Encoder.embed, []

    def wrong_after_a_while(self, inputs, **named):
        answer = embed(self, inputs, **named)
        calls.append(True)
        return answer * (2 if len(calls) > 50 else 1)

    monkeypatch.setattr(Encoder, "embed", wrong_after_a_while)
    assert not soak([make_bundle("encoder")], threads=2, minutes=0.05, opens=10)
    assert "another answer to" in capsys.readouterr().out
