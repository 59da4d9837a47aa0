"""What the calls of several benchmarks have in common."""

import argparse
import os
from pathlib import Path


def parser_with_data(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--data`, the folder that holds `300w/` and `photos/`, by default where tests look for it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=_with_photos, default=os.environ.get("MSRRN_DATA", "../shared/data"))
    return parser


def _with_photos(text: str) -> Path:
    folder = Path(text)
    if missing := [name for name in ("300w", "photos") if not (folder / name).is_dir()]:
        raise argparse.ArgumentTypeError(f"{text} has no folder {missing[0]}: give another one, or set MSRRN_DATA")
    return folder
