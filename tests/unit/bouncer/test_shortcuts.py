"""A shortcut through upstream's work answers what upstream's own function does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.build import VANILLA, binary, source_dir

if TYPE_CHECKING:
    from collections.abc import Callable

_PROGRAM = Path(__file__).with_name("shortcuts.c")
_OURS = Path("include/keeper/shortcuts.h")


@pytest.fixture
def compare(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Compile the comparison with a text of the shortcuts replaced; the lines it prints."""

    def run(found: str, instead: str) -> list[str]:
        binary()
        binary(VANILLA)
        patched, vanilla = source_dir(), source_dir(VANILLA)
        function = re.search(
            r"^bool get_header\(.*?^}\n", (vanilla / "src/proto.c").read_text(), re.M | re.S
        )
        assert function
        (tmp_path / "upstream.h").write_text(
            "static " + function[0].replace("get_header(", "upstream_header(", 1)
        )
        shortcuts = (patched / _OURS).read_text()
        assert found in shortcuts
        ours = tmp_path / "keeper" / _OURS.name
        ours.parent.mkdir()
        ours.write_text(shortcuts.replace(found, instead))
        includes = [tmp_path, patched / "include", patched / "lib", patched, patched / "uthash/src"]
        program = tmp_path / "shortcuts"
        subprocess.run(
            ["cc", "-O1", "-w", *(f"-I{path}" for path in includes), "-o", program, _PROGRAM],
            check=True,
        )
        done = subprocess.run([program], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    return run


def test_they_answer_what_upstream_does(compare: Callable[[str, str], list[str]]) -> None:
    *differences, counts = compare("", "")
    assert differences == []
    # Each kind was met: a comparison of nothing would find nothing.
    whole, part, left = (int(number) for number in re.findall(r"\d+", counts))
    assert min(whole, part, left) > 10_000


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ("avail < NEW_HEADER_LEN ||", ""),
        ("|| p[0] == 0", ""),
        ("be32toh(len) + 1", "be32toh(len)"),
        ("len < NEW_HEADER_LEN || ", ""),
        ("|| len > cf_max_packet_size", ""),
        ("pkt->len = len", "pkt->len = avail"),
        ("data->read_pos += avail", "data->read_pos += len"),
        ("if (avail > len)", "if (avail >= len + 1000)"),
        ("i < n;", "i + 1 < n;"),
        ("while (*types && *types != type)", "while (*types && *types == type)"),
    ],
)
def test_a_mistake_in_them_is_noticed(
    compare: Callable[[str, str], list[str]], found: str, instead: str
) -> None:
    assert len(compare(found, instead)) > 1
