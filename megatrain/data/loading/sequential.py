"""Someone else's WebDataset tar files, read from front to back: no index, so no order but theirs.

What prepared data promises does not hold here. The stream is not elastic: each data-parallel rank reads shards of its
own, so a run resumes only with as many ranks as it was started with; and a resume reads again, from the start, all that
was consumed. Nothing is shuffled. Each rank repeats its shards when they end, so that no rank ever waits for another.
Prepare the data if it is to be read more than once.

A sample's text is its `txt` or `text` member, or the field `text` of its `json`; a `npy` member holds token ids. Texts
are tokenised here, and concatenated with an EOS after each.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import webdataset
from fsspec.core import url_to_fs
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_iterator

from megatrain.base.batch_sizes import BatchSizes
from megatrain.base.errors import DataError, MegatrainError
from megatrain.base.files import open_regular, parse_json
from megatrain.config import DataSection, Source
from megatrain.data.folder.locations import is_remote, location, not_installed
from megatrain.data.folder.npy import parse_npy
from megatrain.data.loading.batch import Batch, Row, assemble
from megatrain.data.loading.loader import StepBatches
from megatrain.data.loading.read_ahead import ReadAhead
from megatrain.data.loading.shares import RankShare
from megatrain.data.ordering.mixture import Mixture, quotas
from megatrain.data.ordering.permutation import key
from megatrain.data.text.rows import MAXIMUM_BYTES
from megatrain.data.text.tokenizer import EncodeError, Tokenizer

_MIXING = 101  # what the key is for; see order.py


class SequentialLoader:
    """Reads one data-parallel rank's batches of WebDataset sources, ahead, in one thread.

    The arguments are those of TrainLoader, and the tokenizer that ids come from.

    Raises:
        DataError: there are fewer shards than ranks.
        ConfigError: the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        data: DataSection,
        tokenizer: Tokenizer,
        *,
        global_batch_size: int | BatchSizes,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        seed: int,
        pin_memory: bool = False,
    ) -> None:
        self._share = RankShare(
            global_batch_size, micro_batch_size=micro_batch_size, data_rank=data_rank, data_size=data_size
        )
        self._data = data
        self._data_size = data_size
        self._pin_memory = pin_memory
        self._tokenizer = tokenizer
        self._shards = [_shards_of(source, data_rank, data_size) for source in data.train]
        self._mixture = Mixture(quotas([source.weight for source in data.train]), key(seed, _MIXING, data_rank))
        self._identity = {
            "sequential_ranks": data_size,
            "seed": seed,
            "sequence_length": data.sequence_length,
            "sources": [[source.path, source.weight] for source in data.train],
        }
        self._position = 0
        self._rows: Iterator[Row] | None = None
        self._reader: ReadAhead[StepBatches[Batch]] | None = None
        self.wait_seconds = 0.0  # how long the last `next` waited for data

    def next(self) -> StepBatches[Batch]:
        """This rank's micro-batches of the next optimizer step.

        Raises:
            DataError: a shard cannot be read, or holds no text where it should.
        """
        started = time.perf_counter()
        if self._reader is None:
            self._rows = self._rows_from(self._position // self._data_size)
            self._reader = ReadAhead(self._read_step, self._position, self._share.next_position, self._data.prefetch)
        batches = self._reader.next()
        self._position = self._share.next_position(self._position)
        self.wait_seconds = time.perf_counter() - started
        return batches

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank, but of use only to as many ranks."""
        return {"position": self._position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Go on from a saved position; the next step reads again all that came before it.

        Raises:
            DataError: the number of ranks, or the sources, are not those of the saved position.
        """
        changed = [name for name, value in self._identity.items() if state.get(name) != value]
        if changed:
            was = "; ".join(f"{name} was {state.get(name)}, is {self._identity[name]}" for name in changed)
            raise DataError(
                f"webdataset sources cannot resume from this checkpoint: {was}. They are read in sequence by a fixed "
                "number of ranks. Restore that, or prepare the data: prepared data resumes with any number."
            )
        position = state.get("position")
        if type(position) is not int or not 0 <= position < 1 << 62:
            raise DataError(f"webdataset sources cannot resume from this checkpoint: its position is {position!r:.40}")
        self.close()
        self._position = position
        return []

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read_step(self, position: int) -> StepBatches[Batch]:
        assert self._rows is not None
        micro_batches = []
        for of_micro_batch in self._share.offsets(position):
            rows = [next(self._rows) for _ in of_micro_batch]
            batch = assemble(rows, attend_across_documents=self._data.attend_across_documents)
            micro_batches.append(batch.pin_memory() if self._pin_memory else batch)
        return StepBatches(tuple(micro_batches), self._share.size(position) * self._data.sequence_length)

    def _rows_from(self, first: int) -> Iterator[Row]:
        """This rank's rows, all sources mixed, without the first ones."""
        streams = [
            pack(self._documents(source, shards), self._data.sequence_length)
            for source, shards in zip(self._data.train, self._shards, strict=True)
        ]
        number = 0
        while True:
            source = int(self._mixture.locate(np.array([number]))[0][0])
            row = next(streams[source])
            if number >= first:
                yield row
            number += 1

    def _documents(self, source: Source, shards: Sequence[str]) -> Iterator[NDArray[np.uint32]]:
        """Token ids of each document, EOS the last; the shards again and again."""
        opener = _opener(self._data.allow_pipe)
        for shard in chain.from_iterable(repeat(shards)):
            found = False
            for sample in read_samples(shard, opener):
                found = True
                yield self._ids(shard, sample)
            if not found:
                raise DataError(f"{shard}: holds no samples")

    def _ids(self, shard: str, sample: dict[str, Any]) -> NDArray[np.uint32]:
        where = f"{shard}: sample {sample['__key__']}"
        try:
            if "npy" in sample:
                ids = parse_npy(sample["npy"])
            else:
                text = sample.get("txt", sample.get("text"))
                text = parse_json(sample["json"], where, DataError)["text"] if text is None else text.decode()
                ids = np.array(self._encode(text, where), dtype=np.int64)
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{where}: has no txt, text, json with a text, or npy of token ids: {error!r}") from None
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(f"{where}: npy: is of shape {ids.shape} and type {ids.dtype}, not a list of whole numbers")
        if ids.size and not 0 <= ids.min() <= ids.max() < self._tokenizer.vocab_size:
            raise DataError(f"{where}: npy: must be a list of ids below {self._tokenizer.vocab_size}")
        return np.append(ids, self._tokenizer.eos_id).astype(np.uint32)

    def _encode(self, text: object, where: str) -> list[int]:
        if not isinstance(text, str) or len(text) > MAXIMUM_BYTES:
            raise DataError(f"{where}: must have a text, of at most {MAXIMUM_BYTES:,} characters")
        try:
            return self._tokenizer.encode(text)
        except EncodeError as error:
            raise DataError(f"{where}: {error}") from None


def pack(documents: Iterator[NDArray[np.uint32]], sequence_length: int) -> Iterator[Row]:
    """Rows of concatenated documents; the last token of a row is the first of the next."""
    tokens = np.empty(0, dtype=np.uint32)
    ends: list[int] = []
    for document in documents:
        tokens = np.concatenate([tokens, document])
        ends.append(len(tokens))
        while len(tokens) > sequence_length:
            inside = [end for end in ends if end <= sequence_length]
            yield Row(tokens[: sequence_length + 1], np.array(inside, dtype=np.int64))
            tokens = tokens[sequence_length:]
            ends = [end - sequence_length for end in ends if end > sequence_length]


def read_samples(shard: str, opener: Callable[[str], IO[bytes]]) -> Iterator[dict[str, Any]]:
    """The samples of a tar file, as webdataset groups them: {"__key__": name, extension: bytes}.

    Raises:
        DataError: it cannot be read, or is no tar file; names it.
    """
    try:
        with opener(shard) as file:
            members = ({**member, "__url__": shard} for member in tar_file_iterator(file, handler=_raise))
            yield from group_by_keys(members, handler=_raise)
    except MegatrainError:
        raise
    except Exception as error:  # each protocol and each compression has errors of its own
        raise DataError(f"{shard}: cannot be read: {error}") from None


def _raise(error: Exception) -> bool:
    raise error


def _opener(allow_pipe: bool) -> Callable[[str], IO[bytes]]:
    def open_shard(shard: str) -> IO[bytes]:
        if shard.startswith("pipe:"):
            if not allow_pipe:  # also checked with the configuration: no command runs by mistake
                raise DataError(f"{shard}: runs a command; set data.allow_pipe: true if you trust it")
            file: IO[bytes] = webdataset.gopen(shard)
            return file
        if not is_remote(shard):
            return open_regular(Path(location(shard)), DataError)
        try:
            opened: IO[bytes] = fsspec.open(shard, "rb").open()
        except (ImportError, ValueError) as error:  # ValueError: a protocol that it does not know
            raise not_installed(shard, error) from None
        return opened

    return open_shard


def _shards_of(source: Source, data_rank: int, data_size: int) -> list[str]:
    """Every data_size-th shard of a source: `{000..123}` names many, and so does a glob pattern."""
    shards = [source.path] if source.path.startswith("pipe:") else _expand(source.path)
    if len(shards) < data_size:
        raise DataError(
            f"{source.path}: has {len(shards)} shards for {data_size} data-parallel ranks, each of which reads its "
            "own. Use fewer ranks, or prepare the data."
        )
    return shards[data_rank::data_size]


def _expand(path: str) -> list[str]:
    if any(letter in path for letter in "*?["):
        try:
            fs, pattern = url_to_fs(path)
            return [fs.unstrip_protocol(name) for name in sorted(fs.glob(pattern))]
        except (ImportError, ValueError) as error:
            raise not_installed(path, error) from None
        except Exception as error:  # each protocol has errors of its own
            raise DataError(f"{path}: cannot be listed: {error}") from None
    return [str(name) for name in webdataset.shardlists.expand_urls(path)]
