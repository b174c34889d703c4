"""Which task trains by which loss."""

from megatrain.config.resolved import ResolvedFinetune
from megatrain.tasks.preference.rated import Rated
from megatrain.tasks.preference.referenced import ReferencedTask
from megatrain.tasks.preference.task import Preference


def preference_task(config: ResolvedFinetune) -> ReferencedTask:
    return Rated(config) if getattr(config.task, "loss", None) == "kto" else Preference(config)
