"""The cache: what a build is named after, and that only finished builds are ever found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from pgkeeper.bouncer.base import BaseFileError, ChecksumError
from pgkeeper.bouncer.build import (
    PATCHED,
    VANILLA,
    NotBuiltError,
    Variant,
    binary,
    cache_dir,
    cached_binary,
    source_dir,
)
from pgkeeper.bouncer.patching import PatchError
from pgkeeper.bouncer.toolchain import BuildStepError

from .conftest import SMALL, diff

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Project


def build(project: Project, variant: Variant = PATCHED) -> Path:
    return binary(variant, source=project.tarball, progress=lambda line: None)


def printed(path: Path) -> list[str]:
    done = subprocess.run([path], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_ours_has_both_kinds_of_patches_and_vanilla_the_distributions(project: Project) -> None:
    assert "kept" in printed(build(project))
    assert "secure" in printed(build(project, VANILLA))


def test_a_second_build_is_the_first(project: Project) -> None:
    first = build(project)
    assert build(project) == first == cached_binary()
    assert project.compiled == 1
    assert project.finished == [first.parent.name]
    assert first.parent.name.startswith("9.8.7-keeper-")


def test_the_source_tree_stays_beside_the_binary(project: Project) -> None:
    with pytest.raises(NotBuiltError, match="pgkeeper build --vanilla"):
        source_dir(VANILLA)
    path = build(project, VANILLA)
    assert source_dir(VANILLA) == path.parent / "source"
    assert (source_dir(VANILLA) / "pgbouncer").samefile(path)


def test_other_users_may_run_it(project: Project) -> None:
    before = os.umask(0o022)
    try:
        path = build(project)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o755
    assert path.parent.stat().st_mode & 0o777 == 0o755


def test_keeper_files_are_installed_by_kind(project: Project) -> None:
    (project.patches / "keeper/ledger.c").write_text("c\n")
    (project.patches / "keeper/ledger.h").write_text("h\n")
    (project.patches / "keeper/notes.md").write_text("not ours to compile\n")
    tree = build(project).parent / "source"
    assert (tree / "src/keeper/ledger.c").read_text() == "c\n"
    assert (tree / "include/keeper/ledger.h").read_text() == "h\n"
    assert not list(tree.rglob("notes.md"))
    assert not list(build(project, VANILLA).parent.rglob("keeper"))


@pytest.mark.parametrize(
    "change",
    [
        lambda patches: (patches / "BASE").write_text((patches / "BASE").read_text() + "# x\n"),
        lambda patches: (patches / "series").write_text(""),
        lambda patches: (patches / "hooks/one.patch").write_text(
            diff("src/main.sh", "secure", "other")
        ),
        lambda patches: (patches / "keeper/new.c").write_text(""),
    ],
    ids=["BASE", "series", "hook", "keeper"],
)
def test_whatever_goes_into_a_build_names_it(project: Project, change: object) -> None:
    first = build(project)
    assert callable(change)
    change(project.patches)
    assert cached_binary() is None
    assert build(project) != first


def test_variants_are_builds_of_their_own(project: Project) -> None:
    variants = [
        Variant(),
        Variant(vanilla=True),
        Variant(cassert=True),
        Variant(sanitize=True),
        Variant(vanilla=True, cassert=True, sanitize=True),
    ]
    paths = [build(project, variant) for variant in variants]
    assert len(set(paths)) == len(variants)
    options = [(path.parent / "source/options").read_text() for path in paths]
    assert ["--enable-cassert" in line for line in options] == [False, False, True, False, True]
    assert ["-fsanitize=" in line for line in options] == [False, False, False, True, True]
    assert all("--with-cares=yes --with-pam" in line for line in options)


def failing_hook(project: Project) -> type[Exception]:
    project.write_hook(diff("src/main.sh", "insecure", "kept"))
    return PatchError


def failing_compiler(project: Project) -> type[Exception]:
    project.write_tarball({**SMALL, "Makefile": "pgbouncer:\n\t@echo 'x.c:1: error: no'; exit 2\n"})
    return BuildStepError


def wrong_program(project: Project) -> type[Exception]:
    project.write_tarball(
        {**SMALL, "src/main.sh": SMALL["src/main.sh"].replace('echo "PgBouncer 9.8.7"', "true")}
    )
    (project.patches / "debian/security").write_text("")
    (project.patches / "series").write_text("")
    project.write_base()
    return BuildStepError


def changed_distribution_patch(project: Project) -> type[Exception]:
    path = project.patches / "debian/security"
    path.write_text(path.read_text() + "\n")
    return ChecksumError


def unpinned_distribution_patch(project: Project) -> type[Exception]:
    (project.patches / "debian/more").write_text("")
    (project.patches / "debian/series").write_text("security\nmore\n")
    return BaseFileError


@pytest.mark.parametrize(
    "breakage",
    [
        failing_hook,
        failing_compiler,
        wrong_program,
        changed_distribution_patch,
        unpinned_distribution_patch,
    ],
)
def test_a_failed_build_leaves_nothing_to_be_used(project: Project, breakage: object) -> None:
    assert callable(breakage)
    expected = breakage(project)
    with pytest.raises(expected) as caught:
        build(project)
    assert "\n" not in str(caught.value)
    assert project.unfinished == []
    assert not [name for name in project.finished if not name.endswith(".log")]


def test_a_failing_hunk_names_patch_and_file(project: Project) -> None:
    failing_hook(project)
    with pytest.raises(PatchError, match=r"patches/hooks/one\.patch .* src/main\.sh at line 2"):
        build(project)


def test_the_log_of_a_failed_step_is_kept_until_it_succeeds(project: Project) -> None:
    failing_compiler(project)
    with pytest.raises(BuildStepError) as caught:
        build(project)
    assert caught.value.log.read_text().endswith("Error 2\n")


def test_a_named_source_is_verified_even_if_the_build_is_cached(project: Project) -> None:
    build(project)
    project.tarball.write_bytes(b"changed")
    with pytest.raises(ChecksumError):
        build(project)


# The recipe tells its process id and then holds the pipe open for as long as it lives.
SLOW = {
    **SMALL,
    "Makefile": "pgbouncer:\n\texec 3>$(BUILD_TRACE).pipe; echo $$$$ >&3; exec sleep 600\n",
}
CLI = [sys.executable, "-c", "from pgkeeper.cli import main; main()", "build"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_build_is_never_found(project: Project, how: signal.Signals) -> None:
    project.write_tarball(SLOW)
    pipe = project.trace.with_suffix(".pipe")
    os.mkfifo(pipe)
    command = [*CLI, "--source", str(project.tarball)]
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE) as process,
        pipe.open() as compiler,
    ):
        compiling = int(compiler.readline())
        process.send_signal(how)
        assert process.wait(timeout=30) != 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
        if how is signal.SIGKILL:
            os.kill(compiling, signal.SIGKILL)
        assert compiler.read() == "", "the compiler outlived the build"
    assert cached_binary() is None
    # Only SIGKILL, which nobody can handle, leaves a folder, and the next build clears it away.
    assert len(project.unfinished) == (how is signal.SIGKILL)


def test_the_next_build_clears_away_what_a_killed_one_left(project: Project) -> None:
    finished = build(project).parent
    stale = finished.with_name(f".{finished.name}.tmp-x")
    finished.rename(stale)
    assert build(project).parent == finished
    assert project.unfinished == []
    assert project.compiled == 2


def test_two_at_once_build_once(project: Project) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(build(project))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert project.compiled == 1


def test_cache_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGKEEPER_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("PGKEEPER_CACHE")
    assert cache_dir() == tmp_path / "b/pgkeeper"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cache_dir() == tmp_path / "c/.cache/pgkeeper"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(cache_dir()) == "/var/cache/pgkeeper"


def test_the_command_prints_the_path_last_and_errors_as_one_line(project: Project) -> None:
    command = [*CLI, "--source", str(project.tarball)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == f"{cached_binary()}\n"
    assert "applying patches/hooks/one.patch\n" in done.stderr
    project.tarball.write_bytes(b"changed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("pgkeeper: pgbouncer_9.8.7.orig.tar.gz from ")
    assert done.stderr.count("\n") == 1
