"""TensorBoard, started on the folder of a run, as a person sees it."""

import json
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from megatrain.monitor.sinks.tensorboard import TensorBoard
from megatrain.run.directory import RunDir
from megatrain.tasks import causal_lm  # noqa: F401 - registers what is reported, as does:
from megatrain.train import report  # noqa: F401

pytestmark = pytest.mark.browser

TAGS = {
    "train/loss", "train/learning_rate", "train/gradient_norm", "validation/loss", "throughput/tokens_per_second",
    "throughput/tokens_per_second_per_gpu", "throughput/mfu", "throughput/step_seconds",
    "throughput/data_wait_fraction", "memory/gib",
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that was stopped after step 20 and went on from its checkpoint after step 10."""
    run = RunDir(tmp_path / "runs" / "example")
    for resume_step, steps in ((0, (10, 20)), (10, (20, 30))):
        board = TensorBoard(run, None, resume_step=resume_step)
        for step in steps:
            values = {
                "loss": 5.0 - step / 10, "grad_norm": 0.5, "learning_rate": 1e-3, "tokens": step * 8192,
                "step_seconds": 0.5, "tokens_per_second": 16_384.0, "tokens_per_second_per_gpu": 8192.0, "mfu": 0.4,
                "data_wait_seconds": 0.01, "data_wait_fraction": 0.02, "memory_bytes": 2**30,
            }  # fmt: skip
            board.write(step, values)
            board.write(step, {"validation_loss": 4.5})
        board.close()
    return run


def test_a_run_shows_loss_learning_rate_gradient_norm_throughput_mfu_and_memory(run, serve, browser):
    every_card_open = "/?tagFilter=/#timeseries"  # without a filter, most groups of cards are folded
    browser.get(serve(run.path.parent) + every_card_open)

    def cards(_: object) -> dict[str, WebElement] | None:
        """The cards on the page by the tag that each shows, once there is one for each scalar."""
        found = browser.find_elements(By.CSS_SELECTOR, "scalar-card")
        by_tag = {card.find_element(By.CSS_SELECTOR, ".tag").get_attribute("title"): card for card in found}
        return by_tag if len(by_tag) >= len(TAGS) else None

    shown = WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(cards)
    assert set(shown) == TAGS

    loss = shown["train/loss"]
    browser.execute_script("arguments[0].scrollIntoView()", loss)  # a card draws when it comes into view
    row = WebDriverWait(browser, 60).until(lambda _: loss.find_elements(By.CSS_SELECTOR, "tb-data-table-content-row"))
    name, _smoothed, value, step = row[0].text.split()[:4]
    assert (name, value, step) == ("example/tensorboard", "2", "30")


def test_the_server_gives_each_step_of_a_resumed_run_once(run, serve):
    query = urlencode({"run": "example/tensorboard", "tag": "train/loss"})
    address = f"{serve(run.path.parent)}/data/plugin/scalars/scalars?{query}"

    def points() -> list[list[float]]:
        """[time, step, value] of each point, once the server has read the folder."""
        for _ in range(100):
            try:
                with urlopen(address, timeout=10) as response:
                    return json.load(response)
            except HTTPError:
                time.sleep(0.1)
        pytest.fail(f"no answer from {address}")

    assert [step for _, step, _ in points()] == [10, 20, 30]
