"""A model in Hugging Face's format with tokens added: rows in its word embedding and head, and a tokenizer that knows
them. What is fine-tuned from the folder needs to know nothing of it: its vocabulary is that large."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.base.files import parse_json, reason, write_json
from megatrain.data.folder.manifest import TOKENIZER
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.data.text.tokenizer_files import TOKENIZER_CONFIG, Files, read_tokenizer, write_files
from megatrain.huggingface.config_json import CONFIG, read_pretrained
from megatrain.huggingface.names import copies_of_embeddings, recognised, wholes
from megatrain.huggingface.weight_files import WEIGHTS_INDEX, weight_files
from megatrain.model.architecture import ModelSection

Start = Literal["pieces", "mean"]
STARTS: tuple[Start, ...] = get_args(Start)
_SAYS = (".json", ".md", ".txt", ".jinja", "")  # endings of files that are copied
# files of other tokenizers that would know nothing of the new tokens
_OLDER = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "added_tokens.json")


@dataclass(frozen=True, slots=True)
class Grown:
    ids: dict[str, int]  # of the new tokens
    rows: int  # of the embedding
    before: int
    tensors: int  # that have grown


def grow(
    base: Path, out: Path, tokens: Sequence[str], *, start: Start = "pieces", special: bool = True, multiple: int = 64
) -> Grown:
    """Write `out`: the base's files, with tokens added.

    Args:
        base: a folder in Hugging Face's format, with its tokenizer.
        out: is not there yet.
        start: of a new row: the mean of the rows of what the base's tokenizer makes of its text, or of all its tokens.
        special: tokens that generation can leave out of a text, such as those of a template.
        multiple: of the embedding's rows, where there are not enough.

    Raises:
        ConfigError: a token is known already, empty, or there twice; or the folder is there.
        CheckpointError, DataError: the base cannot be read, or the folder not be written.
    """
    if out.exists():
        raise ConfigError(f"{out}: already exists; give the name of a new folder")
    section, _ = read_pretrained(base)
    files = weight_files(base, section)
    before = Tokenizer.load(base)
    described, ids = _tokenizer(read_tokenizer(str(base)), before, tokens, special)
    last = max(ids.values()) + 1
    rows = section.padded_vocab_size
    rows = rows if last <= rows else -(-last // multiple) * multiple
    pieces = {number: before.encode(token) if start == "pieces" else [] for token, number in ids.items()}
    growing, copies = _growing(files, section)
    temporary = Path(os.path.abspath(out)).with_name(f".tmp-{out.name}")  # noqa: PTH100 - links stay as they are given
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in filter(_is_kept, base.iterdir()):
            shutil.copyfile(file, temporary / file.name)
        for file in sorted(set(files.values())):
            _write(
                file, temporary / file.name, growing, copies, lambda old: _longer(old, rows, pieces, before.vocab_size)
            )
        _without(temporary / WEIGHTS_INDEX, copies)
        write_files(temporary, described)
        config = parse_json((base / CONFIG).read_bytes(), base / CONFIG, ConfigError)
        write_json(temporary / CONFIG, config | {"vocab_size": rows})
        temporary.rename(out)
    except (OSError, SafetensorError, shutil.Error) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{out}: cannot be written: {why}. Nothing of it is left.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Grown(ids, rows, section.padded_vocab_size, len(growing))


def _is_kept(file: Path) -> bool:
    """What the base says of itself; not weights in other formats, which have not grown."""
    return file.is_file() and file.suffix in _SAYS and file.name not in _OLDER


def _tokenizer(files: Files, before: Tokenizer, tokens: Sequence[str], special: bool) -> tuple[Files, dict[str, int]]:
    """The tokenizer's files with new tokens, and their ids."""
    model = tokenizers.Tokenizer.from_str(files[TOKENIZER].decode())
    for place, token in enumerate(tokens):
        if not token.strip():
            raise ConfigError("--token: is empty; give a text")
        if token in tokens[:place] or model.token_to_id(token) is not None:
            raise ConfigError(f"--token {token!r}: is a token of the tokenizer already. Leave it out")
    added = [tokenizers.AddedToken(token, special=special, normalized=False) for token in tokens]
    (model.add_special_tokens if special else model.add_tokens)(added)
    vocabulary = model.get_vocab(with_added_tokens=True)
    ids = {token: vocabulary[token] for token in tokens}
    if min(ids.values()) < before.vocab_size:
        raise ConfigError(f"{before.name}: has gaps among its ids, in which new tokens would stand; it cannot be grown")
    found = {name: content for name, content in files.items() if name not in _OLDER}
    found[TOKENIZER] = model.to_str(pretty=True).encode()
    said: dict[str, Any] = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
    if "added_tokens_decoder" in said:  # of transformers 4
        fields = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}
        said["added_tokens_decoder"] |= {str(number): {"content": token, **fields} for token, number in ids.items()}
        found[TOKENIZER_CONFIG] = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    return found, ids


def _growing(files: Mapping[str, Path], section: ModelSection) -> tuple[set[str], set[str]]:
    """Names in the files of what has a row for each token, and of copies of tied embeddings, which are left out."""
    rows = section.padded_vocab_size
    wanted = wholes(section)
    stored, _ = recognised(files, wanted, section)
    of_vocabulary = {row.name for whole in wanted.values() for row in whole.rows if row.layers is None}
    growing = {
        stored[name]
        for name, whole in wanted.items()
        if name in stored and whole.rows[0].name in of_vocabulary and whole.shape[0] == rows
    }
    return growing, copies_of_embeddings(section) - growing


def _write(file: Path, out: Path, growing: set[str], copies: set[str], longer: Callable[[Tensor], Tensor]) -> None:
    with ExitStack() as stack:
        opened = stack.enter_context(safe_open(file, framework="pt"))
        names, metadata = list(opened.keys()), opened.metadata()
        if not (growing | copies) & set(names):
            shutil.copyfile(file, out)
            return
        tensors = {name: opened.get_tensor(name) for name in names if name not in copies}
        tensors |= {name: longer(tensors[name]) for name in growing & tensors.keys()}
        save_file(tensors, out, metadata=metadata)


def _longer(tensor: Tensor, rows: int, pieces: Mapping[int, list[int]], used: int) -> Tensor:
    """With rows for the new tokens: the mean of their pieces', or else, as for rows that no token has, of all.

    Args:
        used: rows that a token of the base has.
    """
    values = tensor.float()
    mean = values[:used].mean(0)
    grown = torch.empty(rows, *tensor.shape[1:])
    grown[: len(tensor)] = values
    grown[len(tensor) :] = mean
    for number, like in pieces.items():
        known = [one for one in like if one < len(tensor)]
        grown[number] = values[known].mean(0) if known else mean
    return grown.to(tensor.dtype)


def _without(index: Path, names: set[str]) -> None:
    if not index.exists():
        return
    value = json.loads(index.read_text(encoding="utf-8"))
    value["weight_map"] = {name: file for name, file in value["weight_map"].items() if name not in names}
    write_json(index, value)
