import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal
from fastervit_trt.console import command_app, run_command

app = command_app()

@app.command()
def main() -> None:
    # Inside exec(), as in an import: there CPython remembers a plain KeyboardInterrupt until the end.
    exec("import os, time; os.kill(os.getpid(), {signal}); time.sleep(30)")

run_command(app, [])
"""


def interrupted(folder: Path, stop: signal.Signals) -> subprocess.CompletedProcess[str]:
    (folder / "stopped_inside_exec.py").write_text(PROGRAM.format(signal=int(stop)))
    program = [sys.executable, "-m", "stopped_inside_exec"]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_inside_an_import_ends_with_the_same_code_as_any_other(
    tmp_path: Path, stop: signal.Signals
) -> None:
    done = interrupted(tmp_path, stop)
    assert done.returncode == 130
    assert done.stderr.strip() == "error: interrupted; nothing half-written was kept"
