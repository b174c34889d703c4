"""`transformers serve` answers from an export as `megatrain generate` does. Needs transformers[serving]."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatrain.generate import generate
from megatrain.huggingface.export import export
from tests.huggingface.test_export import tuned, write_base
from tests.trained import make_trained_run

SECONDS = 200
COMMAND = "from transformers.cli.transformers import main; main()"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of an exported model."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", COMMAND, "serve", str(folder), "--device", "cpu", "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL)
    try:
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait()


def post(address: str, body: dict[str, object]) -> dict:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def wait_for(address: str) -> None:
    for _ in range(SECONDS):
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise TimeoutError(address)


@pytest.mark.full
def test_transformers_serve(tmp_path) -> None:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason="pip install 'transformers[serving]'")
    make_trained_run(tmp_path)
    write_base(tmp_path / "base")
    run = tuned(tmp_path, "base", 64)
    folder = export(run.path, tmp_path / "out", dtype="float32").folder
    greedy = {"model": str(folder), "max_tokens": 8, "temperature": 0}
    with served(folder) as address:
        wait_for(address)
        chat = post(f"{address}/v1/chat/completions", greedy | {"messages": [{"role": "user", "content": "once"}]})
        text = post(f"{address}/v1/completions", greedy | {"prompt": "once upon"})
    options = {"max_new_tokens": 8, "temperature": 0}
    assert chat["choices"][0]["message"]["content"] == generate(run.path, "once", chat=True, **options)
    assert "once upon" + text["choices"][0]["text"] == generate(run.path, "once upon", **options)
