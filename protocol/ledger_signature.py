"""The ledger's signature: one number that differs when the layout does.

`python -m protocol.ledger_signature > patches/keeper/signature.h` makes the C side's constant; a
test fails when the file is not what this module prints.
"""

from __future__ import annotations

from typing import Final

from protocol.ledger_checks import fnv1a64
from protocol.ledger_layouts import LAYOUTS


def layout_text() -> str:
    """Spell the layout: "KeeperCopy.epoch=0:8;..." (offset and size in bytes), in C's order."""
    return "".join(
        f"{layout.name}.{field.name}={field.offset}:{field.size};"
        for layout in LAYOUTS
        for field in layout.fields
    )


SIGNATURE: Final = fnv1a64(layout_text().encode())
"""FNV-1a (64 bits) of `layout_text()`; `KeeperHeader.signature` and HELLO carry it."""


def signature_h() -> str:
    """Give the text of `patches/keeper/signature.h`."""
    return (
        "/*\n"
        " * Made by: python -m protocol.ledger_signature\n"
        " *\n"
        " * FNV-1a of the names, offsets and sizes of all fields of format.h.\n"
        " */\n"
        "#ifndef KEEPER_SIGNATURE_H\n"
        "#define KEEPER_SIGNATURE_H\n"
        "\n"
        f"#define KEEPER_SIGNATURE\t0x{SIGNATURE:016x}ULL\n"
        "\n"
        "#endif\n"
    )


if __name__ == "__main__":
    print(signature_h(), end="")
