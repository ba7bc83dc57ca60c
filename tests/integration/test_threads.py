"""How the command sets up what reads the environment when it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOK = "import os; from polydit.core.cli import main; main(['list']); print(os.environ['OMP_WAIT_POLICY'])"


@pytest.mark.parametrize("own", [None, "active"])
def test_threads_wait_without_spinning_unless_told(own):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": own} if own else {}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == (own or "passive")
