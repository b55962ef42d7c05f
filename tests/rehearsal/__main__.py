"""``python -m tests.rehearsal [--devices N] [--log FILE] COMMAND...``: a command in rehearsal."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import rehearsal


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rehearsal", description=rehearsal.__doc__
    )
    parser.add_argument("--devices", type=int, default=1, help="make-believe GPUs (1)")
    parser.add_argument("--log", type=Path, help="file for a line of JSON a CUDA call")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if reason := rehearsal.missing():
        print(f"python -m tests.rehearsal: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "log"
        log.unlink(missing_ok=True)
        environment = {**rehearsal.environment(options.devices), "REHEARSAL_LOG": str(log)}
        status = subprocess.run(options.command, env=environment).returncode
        lines = log.read_text().splitlines() if log.exists() else []
    refused = [record for record in map(json.loads, lines) if "refused" in record]
    for record in refused[:10]:
        print(f"refused: {record}", file=sys.stderr)
    print(f"rehearsal: {len(lines)} CUDA calls logged, {len(refused)} refused", file=sys.stderr)
    return status or bool(refused)


if __name__ == "__main__":
    sys.exit(main())
