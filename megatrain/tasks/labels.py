"""What `task.labels` may not be, of any classifier. No torch."""

from collections import Counter
from collections.abc import Iterator
from typing import Any


def repeated(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    """Field, value, rule and fix, where a label is named more than once."""
    labels = config.task.labels or ()
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        yield "task.labels", list(labels), f"has {twice[0]!r} more than once", "Name each label once."
