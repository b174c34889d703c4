"""`tokenizer:`"""

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Path


class TokenizerSection(Section):
    path: Path = Field(description="a folder with tokenizer.json, or the file")
