"""A page of results of which several benchmarks write a part each."""

from collections.abc import Sequence
from pathlib import Path


def replace_part(page: Path, key: str, title: str, lines: Sequence[str]) -> None:
    """Write a part under its title, in the place of what an earlier run wrote there, or at the page's end."""
    begin, end = f"<!-- {key} -->", f"<!-- end of {key} -->"
    part = "\n".join([begin, f"## {title}", *lines]).rstrip() + f"\n{end}\n"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {page.stem.capitalize()}\n\n"
    before, found, rest = text.partition(begin)
    if found:
        _, _, after = rest.partition(f"{end}\n")
        page.write_text(before + part + after, encoding="utf-8")
    else:
        page.write_text(text.rstrip("\n") + "\n\n" + part, encoding="utf-8")
