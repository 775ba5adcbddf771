"""What the site does beside mkdocs's own: pictures stay where the programs put them that draw them."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PICTURES = ("benchmarks/results/*/*.png", "examples/*.png")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures of other folders, under their names in the repository."""
    root = Path(config.config_file_path).parent
    for picture in (path for pattern in PICTURES for path in root.glob(pattern)):
        files.append(File.generated(config, picture.relative_to(root).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Pages name them as seen from where they lie themselves, which is not a folder of the site."""
    return markdown.replace("](../", "](")
