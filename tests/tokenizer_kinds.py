"""A small tokenizer of each kind, with BOS and EOS and the tokens of a chat, as transformers writes its folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

TEXTS = ("who what where when and the answer to the question; abc: def(x) = [1, 22] \n\n" * 9,)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(
    folder: Path,
    kind: str,
    *,
    front: str = "<s> ",
    behind: str = "",
    more_special: Sequence[str] = (),
    **config: object,
) -> Path:
    """The folder, after writing a tokenizer of a kind of KINDS whose post-processor adds `front` and `behind`."""
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    library = _KINDS[kind]()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", *more_special]
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    ids = [(token, library.token_to_id(token)) for token in special]
    if front or behind:
        parts = [
            library.post_processor,
            processors.TemplateProcessing(single=f"{front}$A{behind}", special_tokens=ids),
        ]
        library.post_processor = processors.Sequence([part for part in parts if part is not None])
    written = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")
    written.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config), encoding="utf-8")
    return folder


def _byte_level() -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    return library


def _metaspace() -> Library:
    library = Library(models.BPE(byte_fallback=False, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    return library


def _sentencepiece() -> Library:
    """As Llama 2's: the space in front comes from the normalizer."""
    library = Library(models.BPE(unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>"], max_token_length=8, limit_alphabet=80, show_progress=False
    )
    library.train_from_iterator((text.replace(" ", "▁") for text in TEXTS), trainer)
    return library


def _wordpiece() -> Library:
    library = Library(models.WordPiece(unk_token="<unk>"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=["<unk>"], show_progress=False)
    )
    return library


def _unigram() -> Library:
    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    return library


_KINDS = {
    "byte_level": _byte_level,
    "metaspace": _metaspace,
    "sentencepiece": _sentencepiece,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}
KINDS = tuple(_KINDS)
