"""Everything that only a GPU can tell, in under ten minutes on one card: a section per question, each in a process of
its own with a time limit, so that one that fails or hangs costs no other.

    python -m benchmarks.gpu --out OUT [--only facts kernels …] [--device cpu]

Writes OUT/day.jsonl: an object per measurement, with card, versions and date in the first. `--device cpu` runs the
sections that a CPU can, at toy sizes, to see that the script itself works.
"""

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

# section -> seconds; in the order of what is needed most, should the machine go away
SECTIONS = {
    "facts": 40,
    "tests": 150,
    "product": 150,
    "steps": 400,
    "peers": 300,
    "trace": 60,
    "kernels": 90,
    "layouts": 90,
    "block": 120,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    day = arguments.out / "day.jsonl"
    for section in arguments.only:
        began = time.monotonic()
        problem = run_section(section, arguments.device, arguments.out, SECTIONS[section])
        line = {"section": section, "seconds": round(time.monotonic() - began, 1), "problem": problem}
        with open(day, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "at": datetime.datetime.now(datetime.UTC).isoformat()}) + "\n")
        print(json.dumps(line), flush=True)


def run_section(section: str, device: str, out: Path, limit: int) -> str | None:
    """Run one section; what went wrong, or None."""
    if section == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "-n", "8", "tests/gpu", "-p", "no:cacheprovider"]
    else:
        command = [
            sys.executable,
            "-m",
            f"benchmarks.gpu.{section}",
            "--out",
            str(out / "day.jsonl"),
            "--device",
            device,
        ]
    with open(out / f"{section}.log", "wb") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"took more than {limit} s"
    return None if code == 0 else f"exit code {code}; see {section}.log"


if __name__ == "__main__":
    main()
