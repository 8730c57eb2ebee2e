"""The kernel's figures of a socket are exact at any time, and only as they are read and corrected.

An adoption asks for them when peers go on sending, and when they have closed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.ledger.headers import KEEPER, compile_c

if TYPE_CHECKING:
    from collections.abc import Callable

_DRIVER = Path(__file__).with_name("figures.c")

# The peer gets its turn between the two calls, which it seldom does by chance.
_PAUSE = ("if (!tcp_info(fd, &after))", "if (usleep(1), !tcp_info(fd, &after))")
_MISTAKES = {
    "counter and queue at different times": (_PAUSE, ("} while (", "} while (0 && ")),
    "received FIN counted": ((" - fin_received(after.tcpi_state)", ""),),
    "sent FIN counted": ((" - fin_sent(after.tcpi_state)", ""),),
}
_MANY = 30_000
_FEW = 100


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Compile the driver, with a figures.c in which some texts are replaced."""

    def compile_driver(*changes: tuple[str, str]) -> Path:
        text = (KEEPER / "figures.c").read_text()
        for found, instead in changes:
            assert text.count(found) == 1, f"figures.c has changed: {found!r}"
            text = text.replace(found, instead)
        source = tmp_path / "figures.c"
        source.write_text(f"#include <unistd.h>\n{text}")
        # A broken figures.c has a condition that decides nothing, or a function nobody calls.
        options = ("-Wno-parentheses", "-Wno-unused-function")
        return compile_c(tmp_path / "figures", _DRIVER, source, options=options)

    return compile_driver


def run(program: Path, rounds: int, end: str) -> tuple[int, str]:
    """Run the driver; its exit status and what it prints."""
    command = [str(program), str(rounds), end]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("end", ["ours", "theirs"])
def test_the_figures_are_exact_while_the_peer_goes_on(build: Callable[..., Path], end: str) -> None:
    status, text = run(build(), _MANY, end)
    assert status == 0, text


def test_the_figures_are_exact_however_long_they_take(build: Callable[..., Path]) -> None:
    status, text = run(build(_PAUSE), _FEW, "theirs")
    assert status == 0, text


@pytest.mark.parametrize(
    ("name", "rounds", "end"),
    [
        ("counter and queue at different times", _MANY, "ours"),
        ("received FIN counted", _FEW, "theirs"),
        ("sent FIN counted", _FEW, "ours"),
    ],
)
def test_a_mistake_in_the_figures_is_noticed(
    build: Callable[..., Path], name: str, rounds: int, end: str
) -> None:
    status, text = run(build(*_MISTAKES[name]), rounds, end)
    assert status == 1, text
    assert text.startswith("wrong")
