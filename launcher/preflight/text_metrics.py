"""What `evaluation.generate` needs: packages that define its metrics."""

from collections.abc import Iterator
from importlib.util import find_spec

from launcher.preflight.finding import Finding
from megatrain.base.errors import ExitCode
from megatrain.config import Config

_PACKAGES = {
    "bleu": ("sacrebleu", "sacrebleu"),
    "chrf": ("sacrebleu", "sacrebleu"),
    "rouge": ("rouge_score", "rouge-score"),
}


def check_text_metrics(config: Config) -> Iterator[Finding]:
    section = config.evaluation.generate
    for metric in section.metrics if section else ():
        module, package = _PACKAGES.get(metric, ("", ""))
        if module and find_spec(module) is None:
            text = (
                f"evaluation.generate.metrics: {metric}: {package} is not installed. "
                "Try pip install 'megatrain[metrics]', or leave it out."
            )
            yield Finding("error", text, ExitCode.USAGE)
