"""The README is true: its code runs as printed, its links lead somewhere."""

import pytest
from documents import ROOT, missing_links, python_blocks, run_program

TEXT = (ROOT / "README.md").read_text()
BLOCKS = python_blocks(TEXT)


def test_there_are_code_blocks():
    assert len(BLOCKS) >= 3
    first = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(first) <= 13, "the opening example is ten lines or so"


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_blocks_run(number, tmp_path):
    run_program(BLOCKS[number], tmp_path)


def test_links_and_pictures_exist():
    assert not missing_links(TEXT)
