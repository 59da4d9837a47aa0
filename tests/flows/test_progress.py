"""What a person sees on a terminal."""

import os
import re
import subprocess
import sys
from contextlib import suppress


def shown(program: str) -> list[str]:
    """The frames that it draws on a terminal 80 columns wide, without colours."""
    ours, theirs = os.openpty()
    narrow = {**os.environ, "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=narrow) as process:
        os.close(theirs)
        drawn = b""
        with suppress(OSError):  # the terminal is closed
            while some := os.read(ours, 4096):
                drawn += some
    os.close(ours)
    assert process.returncode == 0, drawn
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode()))


def test_what_another_run_says_of_itself_is_shown_as_it_is() -> None:
    """Square brackets could be taken for markup."""
    frames = shown(
        "from flows.progress import progress\n"
        "with progress('annotating') as update: update(1, 2, 'waiting: [/x]', '[red]')"
    )
    assert any("waiting: [/x]" in frame and "[red]" in frame for frame in frames)


def test_a_training_says_how_far_it_is_before_the_first_epoch_ends_and_on_a_narrow_terminal() -> None:
    program = (
        "from flows.progress import epoch_progress\n"
        "from pipelines.settings import TrainSettings\n"
        "with epoch_progress(TrainSettings(epochs=24)) as (epoch, wait):\n"
    )
    assert any(" 0/24 " in frame for frame in shown(program + "    pass"))
    frames = shown(program + "    epoch({'epoch': 7, 'loss': 1.2145, 'val_nrmse_ip_stage_3': 0.1611})")
    assert re.search(r" 7/24 0:00:0\d .* loss 1\.2145  val NRMSE IP 16\.11%$", "\n".join(frames), re.MULTILINE)
