"""Entities of tagged words, as seqeval's default reads them (the rules of CoNLL's conlleval): IOB2, IOBES and the like.

An entity begins with B or S, behind an end, or where the type changes: an I-PER behind O begins one.
"""

from collections.abc import Hashable, Iterable, Sequence


def entities(tags: Sequence[str], documents: Iterable[Hashable]) -> set[tuple[int, int, str]]:
    """(first word, last word, type) of each.

    Args:
        tags: of the words of all examples, one after the other.
        documents: the example of each word; none is over two of them.
    """
    found: set[tuple[int, int, str]] = set()
    begin, before, kind_before, document_before = 0, "O", "", None
    for place, (tag, document) in enumerate(zip(tags, documents, strict=True)):
        prefix, kind = _parts(tag)
        if document != document_before:
            if before not in ("O", "."):
                found.add((begin, place - 1, kind_before))
            before, kind_before, document_before = "O", "", document
        if _ends(before, prefix, kind_before, kind):
            found.add((begin, place - 1, kind_before))
        if _begins(before, prefix, kind_before, kind):
            begin = place
        before, kind_before = prefix, kind
    if before not in ("O", "."):
        found.add((begin, len(tags) - 1, kind_before))
    return found


def _parts(tag: str) -> tuple[str, str]:
    """B-PER: B, PER. Without a type it is "_"."""
    return tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"


def _ends(before: str, now: str, kind_before: str, kind: str) -> bool:
    """Whether an entity ends in front of a word."""
    if before in "ES" or (before in "BI" and now in "BSO"):
        return True
    return before not in ("O", ".") and kind_before != kind


def _begins(before: str, now: str, kind_before: str, kind: str) -> bool:
    """Whether an entity begins with a word."""
    if now in "BS" or (before in "ESO" and now in "EI"):
        return True
    return now not in ("O", ".") and kind_before != kind
