"""Programs in a Markdown file: found, and run as a reader would run them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_blocks(text: str) -> list[str]:
    """The code blocks of a Markdown text that are Python."""
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run_program(program: str, folder: Path) -> None:
    """A program of its own, in a fresh interpreter with the defaults that a reader has."""
    path = folder / "block.py"
    path.write_text(program)
    done = subprocess.run([sys.executable, path], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def missing_links(text: str) -> list[str]:
    """Files of this repository that a text links to and that do not exist."""
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    return [t for t in targets if not t.startswith("https://") and not (ROOT / t).exists()]
