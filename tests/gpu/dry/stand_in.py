"""Builds the libraries that stand in for a card, from the headers in the wheels of torch's CUDA build and of Triton."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import triton

HERE = Path(__file__).parent
TRITON_HEADERS = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
_DECLARED = re.compile(r"CUDAAPI\s+(cu\w+)|define cu\w+\s+(?:__CUDA_API_\w+\()?(cu\w+)")
_UNDEFINED = re.compile(r" U (cu\w+)")


def enter(folder: Path) -> None:
    """Start this process again with the stand-ins in front; returns in a process that has them."""
    folder = folder.resolve()
    if str(folder) in os.environ.get("LD_LIBRARY_PATH", ""):
        return
    folder.mkdir(parents=True, exist_ok=True)
    preload = _runtime(folder)
    _driver(folder)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(preload), "DS_ACCELERATOR": "cuda"}
    os.execve(sys.executable, [sys.executable, "-m", *sys.orig_argv[sys.orig_argv.index("-m") + 1 :]], environment)


def _runtime(folder: Path) -> Path:
    site = Path(torch.__file__).parents[1]
    headers = next(site.glob("nvidia/*/include/cuda_runtime_api.h")).parent
    library = folder / "libcard.so"
    include = [f"-I{headers}", f"-I{TRITON_HEADERS}"]
    subprocess.run(["g++", "-shared", "-fPIC", *include, str(HERE / "runtime.cpp"), "-o", str(library)], check=True)
    return library


def _driver(folder: Path) -> None:
    """A libcuda in which no call succeeds but the question whether the device has a context: it has none."""
    nvrtc = Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"
    wanted = subprocess.run(["nm", "-D", str(nvrtc)], capture_output=True, text=True, check=True).stdout
    declared = (TRITON_HEADERS / "cuda.h").read_text(encoding="utf-8")
    names = set(_UNDEFINED.findall(wanted)) | {name for pair in _DECLARED.findall(declared) for name in pair if name}
    names -= {"cuDevicePrimaryCtxGetState"}
    source = folder / "driver.c"
    source.write_text(
        "int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { *flags = *active = 0; return 0; }\n"
        + "".join(f"int {name}() {{ return 3; }}\n" for name in sorted(names)),  # 3: not initialized
        encoding="utf-8",
    )
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", str(source), "-o", str(folder / "libcuda.so.1")], check=True)
