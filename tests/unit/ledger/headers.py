"""What the C headers declare: found by reading them, measured by compiling them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PATCHES = Path(__file__).parents[3] / "patches"
KEEPER = PATCHES / "keeper"

_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_ENUM = re.compile(r"^enum (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_DEFINE = re.compile(r"^#define (\w+)[ \t]+\S", re.MULTILINE)
_NESTED = re.compile(r"\tstruct \{\n(.*?)\n\t\} (\w+)\[", re.DOTALL)
_MEMBER = re.compile(r"^\s*(?:struct )?\w+ (\w+(?:\[[^]]*\])?(?:, \w+)*);", re.MULTILINE)
_ENUMERATOR = re.compile(r"^\s*(\w+)(?: = [^,\n]+)?,?", re.MULTILINE)


def gcc() -> str:
    """The compiler; without one nothing here can be compared, which must not go unnoticed."""
    path = shutil.which("gcc") or shutil.which("cc")
    if path is None:
        pytest.skip("NO C COMPILER: the C and the Python side of the formats were NOT compared")
    return path


def without_comments(text: str) -> str:
    """C text without its comments."""
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@dataclass
class Header:
    """The names that a header declares."""

    path: Path
    structs: dict[str, list[str]] = field(default_factory=dict)
    enums: dict[str, list[str]] = field(default_factory=dict)
    defines: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, name: str) -> Header:
        path = KEEPER / name
        text = without_comments(path.read_text())
        header = cls(path)
        for struct, body in _STRUCT.findall(text):
            for inner, array in _NESTED.findall(body):
                header.structs[f"{struct}.{array}"] = _members(inner)
            header.structs[struct] = _members(_NESTED.sub(r"\tuint8_t \2[", body))
        for enum, body in _ENUM.findall(text):
            header.enums[enum] = _ENUMERATOR.findall(body)
        header.defines = _DEFINE.findall(text)
        return header

    @property
    def constants(self) -> list[str]:
        return [*self.defines, *(name for names in self.enums.values() for name in names)]


def _members(body: str) -> list[str]:
    names = []
    for found in _MEMBER.findall(body):
        names += [name.partition("[")[0].strip() for name in found.split(",")]
    return names


@dataclass
class Measured:
    """Sizes of structs, offsets and sizes of their members, and values of constants, by name."""

    sizes: dict[str, int]
    fields: dict[str, list[tuple[str, int, int]]]
    constants: dict[str, int]


def measure(header: Header, folder: Path) -> Measured:
    """Compile and run a program that prints everything a header declares."""
    lines = []
    for struct, members in header.structs.items():
        outer, _, array = struct.partition(".")
        what = f"((struct {outer} *)0)->{array}[0]" if array else f"*(struct {outer} *)0"
        where = f"struct {outer}"
        base = f"offsetof({where}, {array}[0])" if array else "0"
        lines.append(f'printf("size {struct} %zu\\n", sizeof({what}));')
        for member in members:
            path = f"{array}[0].{member}" if array else member
            lines.append(
                f'printf("field {struct} {member} %zu %zu\\n",'
                f" offsetof({where}, {path}) - {base}, sizeof((({where} *)0)->{path}));"
            )
    lines += [
        f'printf("constant {name} %llu\\n", (unsigned long long)({name}));'
        for name in header.constants
    ]
    source = folder / "dump.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "keeper/{header.path.name}"\n'
        "int main(void)\n{\n\t" + "\n\t".join(lines) + "\n\treturn 0;\n}\n"
    )
    out = run(compile_c(folder / "dump", source))
    measured = Measured({}, {}, {})
    for line in out.splitlines():
        what, name, *rest = line.split()
        if what == "size":
            measured.sizes[name] = int(rest[0])
        elif what == "field":
            measured.fields.setdefault(name, []).append((rest[0], int(rest[1]), int(rest[2])))
        else:
            measured.constants[name] = int(rest[0])
    return measured


def compile_c(program: Path, *sources: Path, options: tuple[str, ...] = ()) -> Path:
    """Compile C sources against patches/keeper; warnings are errors."""
    command = [gcc(), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{PATCHES}"]
    subprocess.run([*command, *options, "-o", program, *sources], check=True, text=True)
    return program


def run(program: Path, *arguments: str, stdin: bytes = b"") -> str:
    """Run a program and give what it prints."""
    done = subprocess.run([program, *arguments], input=stdin, check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()
