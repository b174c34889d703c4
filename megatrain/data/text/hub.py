"""Rows of datasets on the Hugging Face Hub, through `datasets`: streamed, never cached."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.text.tables import NoColumnError

HUB = "hub:"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A name as `datasets.load_dataset` takes it: a repository on the Hub, or a local folder of data files."""

    name: str
    revision: str | None = None
    subset: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, text: str) -> "HubDataset":
        """`hub:NAME[@REVISION][?subset=SUBSET&split=SPLIT]`.

        Raises:
            ConfigError: it has another form.
        """
        address, _, query = text.removeprefix(HUB).partition("?")
        name, _, revision = address.partition("@")
        options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
        if not name or not options.keys() <= {"subset", "split"}:
            raise ConfigError(f"{text}: must be hub:NAME[@REVISION][?subset=SUBSET&split=SPLIT]")
        return cls(name, revision or None, options.get("subset"), options.get("split", "train"))

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        subset = f"subset={self.subset}&" if self.subset else ""
        return f"{HUB}{self.name}{revision}?{subset}split={self.split}"

    def fingerprint(self) -> str:
        """SHA-256 over the commit and the data files that the name stands for now.

        Raises:
            DataError: the dataset or its split cannot be found.
        """
        builder = _builder(self)
        files = builder.config.data_files or {}
        found = files.get(self.split)
        parts = [builder.hash, *map(str, found or []), *map(str, getattr(found, "origin_metadata", []))]
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def read_hub(dataset: HubDataset, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Each row of the split, as Python values.

    Args:
        columns: the fields to read; default: all.

    Raises:
        DataError: the dataset cannot be loaded, or lacks a column.
    """
    builder = _builder(dataset)
    try:
        rows = builder.as_streaming_dataset(split=dataset.split)
        known = list(rows.features or next(iter(rows), {}))
        for column in columns or ():
            if known and column not in known:
                raise NoColumnError(dataset, column, known)
        yield from rows.select_columns(list(columns)) if columns and known else rows
    except DataError:
        raise
    except Exception as error:  # the library lets through whatever its readers and the network raise
        raise DataError(f"{dataset}: cannot be read: {error}") from None


def _builder(dataset: HubDataset) -> Any:
    import datasets  # takes a second to import: only for those who need it

    try:
        return datasets.load_dataset_builder(dataset.name, dataset.subset, revision=dataset.revision)
    except Exception as error:  # the library lets through whatever its readers and the network raise
        raise DataError(f"{dataset}: cannot be found: {error}") from None
