"""Docstrings are written for readers of the code; this makes them what the site's generator knows."""

import re
from typing import Any

import griffe


class Readable(griffe.Extension):
    """Sections, blocks and cross-references."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of every function and class."""
        if obj.docstring:
            text = re.sub(r"^( *)Example::?$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r":(func|class|mod|meth):(?=`)", "", text)
