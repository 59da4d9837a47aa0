import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys
import numpy as np
from pipelines.memory import keep_memory

if sys.argv[1] == "kept":
    keep_memory()
# Larger than what the library keeps by itself, at most.
np.ones(50_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(50_000_000, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told")
def test_memory_that_is_freed_is_used_again() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["given back"] > 100
    assert faults["kept"] < faults["given back"] / 10
