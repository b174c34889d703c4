"""python -m tests.gpu.dry [FAMILY …] [--work FOLDER]

Ends with 1 where a family does not trace or compile, and says why.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.gpu.dry import stand_in


def main() -> int:
    parser = argparse.ArgumentParser(description="Trace and compile every family for an H100 that is not there.")
    parser.add_argument("families", nargs="*")
    parser.add_argument("--work", type=Path, default=Path(".gpu-dry"), help="where the stand-in libraries are built")
    arguments = parser.parse_args()
    stand_in.enter(arguments.work)

    from tests.gpu.dry.kernels import compile_all
    from tests.gpu.dry.models import SECTIONS, cases, trace

    print(f"{compile_all()} kernels of our own compiled for sm_90", flush=True)
    interpreter = [sys.executable, "-m", "tests.gpu.dry.interpreted"]
    failed = int(subprocess.run(interpreter, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode != 0)
    for family in arguments.families or SECTIONS:
        for case in cases():
            began = time.monotonic()
            try:
                found = trace(SECTIONS[family], case)
            except Exception:
                traceback.print_exc(limit=-3)
                failed, found = failed + 1, "FAILED"
            print(f"{family:<11} {case!s:<46} {found:<32} {time.monotonic() - began:5.1f} s", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
