"""What the calls of several benchmarks have in common."""

import argparse
import os
from pathlib import Path


def parser_with_data(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--data`, the folder that holds `300w/` and `photos/`, by default where tests look for it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MSRRN_DATA", "../shared/data")))
    return parser
