"""Rows of tables and of datasets on the Hugging Face Hub, through `datasets`: streamed, never cached."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from megatrain.errors import ConfigError, DataError

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


def read_hub(dataset: HubDataset, text_field: str) -> Iterator[object]:
    """The text field of each row of the split, unchecked.

    Raises:
        DataError: the dataset cannot be loaded, or has no such field.
    """
    builder = _builder(dataset)
    return _column(str(dataset), lambda: builder.as_streaming_dataset(split=dataset.split), text_field)


def read_table(file: Path, builder: str, text_field: str) -> Iterator[object]:
    """The text field of each row of a parquet or arrow file, unchecked.

    Raises:
        DataError: the file is not such a table, or has no such field.
    """
    import datasets  # takes a second to import: only for those who need it

    def load() -> Any:
        return datasets.load_dataset(builder, data_files=[str(file)], split="train", streaming=True)

    return _column(str(file), load, text_field)


def no_field(where: str, text_field: str, known: list[str]) -> DataError:
    return DataError(
        f"{where}: has no field {text_field!r}. It has {', '.join(known) or 'none'}: choose with --text-field."
    )


def _builder(dataset: HubDataset) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(dataset.name, dataset.subset, revision=dataset.revision)
    except Exception as error:  # the library lets through whatever its readers and the network raise
        raise DataError(f"{dataset}: cannot be found: {error}") from None


def _column(where: str, load: Any, text_field: str) -> Iterator[object]:
    try:
        rows = load()
        columns = list(rows.features or next(iter(rows)))
        if text_field not in columns:
            raise no_field(where, text_field, columns)
        for row in rows.select_columns([text_field]):
            yield row[text_field]
    except (StopIteration, GeneratorExit):
        return
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {error}") from None
