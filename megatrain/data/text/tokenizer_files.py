"""The files of a tokenizer: tokenizer.json and what lies beside it, read without trust."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from megatrain.base.errors import DataError
from megatrain.base.files import parse_json, read_bytes
from megatrain.data.folder.manifest import TOKENIZER
from megatrain.data.text.vocabulary import parse_vocabulary

TOKENIZER_CONFIG = "tokenizer_config.json"
CLASS = "PreTrainedTokenizerFast"  # of transformers: whatever tokenizer.json says
FILE_LIMIT = 512 << 20  # bytes; the largest in use have about 35 MB
_COMPANIONS = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),  # nothing here reads them, but other programs do
)
TEMPLATES = "additional_chat_templates"  # a folder of those with names
_COMPANION_LIMIT = 16 << 20
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.jinja")
_FOREIGN = ("tokenizer.model", "tekken.json")  # what a folder without tokenizer.json may hold; see `tokenizer_import`

Files = Mapping[str, bytes]  # by name, which may be in a folder


def write_files(folder: Path, files: Files) -> None:
    """Into a folder that is there. Raises OSError."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def read_tokenizer(path: str) -> Files:
    """tokenizer.json (made from a foreign file, if need be) and what lies beside it, by name.

    Args:
        path: a folder, or the file.

    Raises:
        DataError: there is none, or one of the files is not what its name says.
        PreflightError: it is a SentencePiece model or tiktoken file, and their library is not installed.
    """
    file = tokenizer_file(path)
    content = read_bytes(file, limit=FILE_LIMIT, error=DataError)
    found = {TOKENIZER: content}
    for name in _COMPANIONS:
        if (beside := file.with_name(name)).exists():
            found[name] = read_bytes(beside, limit=_COMPANION_LIMIT, error=DataError)
            if name.endswith(".json") and not isinstance(parse_json(found[name], beside, DataError), dict):
                raise DataError(f"{beside}: must be a JSON object")
    for template in sorted(file.with_name(TEMPLATES).glob("*.jinja")):
        if template.is_file() and _TEMPLATE_NAME.fullmatch(template.name):
            name = f"{TEMPLATES}/{template.name}"
            found[name] = read_bytes(template, limit=_COMPANION_LIMIT, error=DataError)
    if content.lstrip()[:1] != b"{" or file.name in _FOREIGN:
        from megatrain.data.text.tokenizer import Tokenizer  # the `tokenizers` library takes a while

        loaded = Tokenizer.load(file)
        said = json.loads(found.get(TOKENIZER_CONFIG, b"{}")) | {"tokenizer_class": CLASS}
        said |= {"eos_token": loaded.eos_token, "pad_token": loaded.pad_token}
        found |= {
            TOKENIZER: loaded.content,
            TOKENIZER_CONFIG: (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode(),
        }
    parse_vocabulary(found[TOKENIZER], file)
    return found


def tokenizer_file(path: str) -> Path:
    """The file that a tokenizer.path means: in a folder, tokenizer.json, or else a foreign file of a usual name."""
    folder = Path(path)
    if not folder.is_dir():
        return folder
    names = (TOKENIZER, *_FOREIGN)
    return next((folder / name for name in names if (folder / name).exists()), folder / TOKENIZER)


def pad_token(files: Files) -> str | None:
    """The padding token that a tokenizer's files name, or else one of a usual name."""
    said = json.loads(files[TOKENIZER_CONFIG]).get("pad_token") if TOKENIZER_CONFIG in files else None
    return token_text(said)


def padding(path: str) -> tuple[str | None, int]:
    """The token that rows are padded with, and its id: the tokenizer's padding, or else the end of a document.

    Raises:
        DataError, PreflightError: as `Tokenizer.load`.
    """
    from megatrain.data.text.tokenizer import Tokenizer  # the `tokenizers` library takes a while

    loaded = Tokenizer.load(tokenizer_file(path))
    return loaded.pad_token, loaded.pad_id


def token_text(token: object) -> str | None:
    """transformers writes a token as its text, or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def tokenizer_sha256(path: str) -> str:
    """SHA-256 of the tokenizer.json that `read_tokenizer` gives; raises as it does."""
    return hashlib.sha256(read_tokenizer(path)[TOKENIZER]).hexdigest()
