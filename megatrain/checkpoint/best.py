"""What early stopping knows at a checkpoint. No torch: a login node asks whether the run is over."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from megatrain.config.early_stopping import EarlyStoppingSection

_Number = Annotated[int, Field(ge=0, le=10**15)]


class Best(BaseModel):
    """The best evaluation so far, and how many came after it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str
    value: float
    step: _Number
    since: _Number = 0

    def after(self, section: EarlyStoppingSection, step: int, value: float) -> "Best":
        """With another evaluation."""
        if section.sign * (value - self.value) > section.min_delta:
            return Best(metric=self.metric, value=value, step=step)
        return self.model_copy(update={"since": self.since + 1})


def is_over(section: EarlyStoppingSection | None, best: Best | None) -> bool:
    """Whether a run ends there; one that looks at another metric by now goes on."""
    if section is None or best is None or best.metric != section.metric:
        return False
    return best.since >= section.patience
