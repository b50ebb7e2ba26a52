"""`python -m benchmarks`, in tests/: prints the table, and writes its numbers as JSON if a file is named."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import description
from benchmarks.rounds import compare, tell
from benchmarks.scale import Scale, curves
from benchmarks.table import comparison_table, scale_table


def main() -> int:
    given = _arguments().parse_args()
    if shutil.which("curl") is None:
        print("curl is not installed", file=sys.stderr)
        return 1
    print(f"{description()}\n", flush=True)
    document: dict[str, Any] = {"machine": description()}
    if given.scale:
        scale = Scale(given.scale_size, given.databases, given.files, given.at_once)
        points = []
        for point in curves(scale):
            tell(f"{point.name}: {point.seconds:.2f} s")
            points.append(point)
        document["scale"] = [dataclasses.asdict(point) for point in points]
        print("\n".join(scale_table(points)))
    else:
        comparison = compare(given.size, given.rounds, given.seconds)
        document |= dataclasses.asdict(comparison)
        print("\n".join(comparison_table(comparison)))
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description="How fast a backup is.")
    parser.add_argument("--size", type=float, default=1000, help="of the database, in MB")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each candidate")
    parser.add_argument("--seconds", type=float, default=8, help="how long each bystander is watched")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--scale", action="store_true", help="the curves instead of the comparison")
    whole = Scale()
    parser.add_argument("--scale-size", type=int, default=whole.size_mb, help="the largest database, in MB")
    parser.add_argument("--databases", type=int, default=whole.databases, help="the most databases")
    parser.add_argument("--files", type=int, default=whole.files, help="the most files")
    parser.add_argument("--at-once", type=int, default=whole.at_once, help="the most backups at once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
