"""The plan of a handoff, interrupted everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeeper.handoff.plan import (
    ImpossiblePictureError,
    Old,
    Picture,
    Step,
    Verdict,
    Wing,
    after,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How a plan may leave things.
ENDS = {
    Verdict.REPLACED: lambda it: it.new is Wing.ACTIVE and it.old is Old.DEAD and it.kept,
    Verdict.UNTOUCHED: lambda it: (
        it.old is Old.SERVING and it.new in (Wing.DEAD, Wing.ABSENT) and it.back is Wing.ABSENT
    ),
    Verdict.WENT_BACK: lambda it: it.back is Wing.ACTIVE and it.new is Wing.DEAD and not it.kept,
    Verdict.NOBODY: lambda it: it.old is Old.DEAD and Wing.ACTIVE not in (it.new, it.back),
}


def run(
    outcomes: tuple[bool, ...], start: Picture | None = None
) -> tuple[list[Step], Picture, Verdict | None]:
    """Follow a plan as long as there are outcomes; the verdict is None if it wants more."""
    steps = plan(start)
    picture = start or Picture()
    done: list[Step] = []
    try:
        step = next(steps)
        for outcome in outcomes:
            done.append(step)
            picture = after(picture, step, outcome)
            step = steps.send(outcome)
    except StopIteration as end:
        return done, picture, end.value
    steps.close()
    return done, picture, None


def all_paths(start: Picture | None = None) -> Iterator[tuple[bool, ...]]:
    """Every sequence of outcomes that ends a plan."""
    unfinished: list[tuple[bool, ...]] = [()]
    while unfinished:
        path = unfinished.pop()
        if run(path, start)[2] is not None:
            yield path
        else:
            unfinished += [(*path, True), (*path, False)]


def prefixes() -> Iterator[tuple[bool, ...]]:
    seen = set()
    for path in all_paths():
        seen |= {path[:length] for length in range(len(path) + 1)}
    return iter(sorted(seen))


PATHS = list(all_paths())
PREFIXES = list(prefixes())


def test_all_goes_well() -> None:
    steps, picture, verdict = run((True,) * 8)
    assert verdict is Verdict.REPLACED
    assert steps == [
        Step.START_NEW,
        Step.AWAIT_STANDBY,
        Step.FREEZE,
        Step.CHECK_FORMAT,
        Step.FENCE_OLD,
        Step.ACTIVATE_NEW,
        Step.AWAIT_READY,
        Step.KEEP_NEW,
    ]
    assert picture == Picture(Old.DEAD, Wing.ACTIVE, Wing.ABSENT, kept=True)


def test_where_nobody_serves_the_new_one_does() -> None:
    nobody = Picture(Old.DEAD)
    steps, picture, verdict = run((True,) * 5, nobody)
    assert verdict is Verdict.REPLACED
    assert steps == [
        Step.START_NEW,
        Step.AWAIT_STANDBY,
        Step.ACTIVATE_NEW,
        Step.AWAIT_READY,
        Step.KEEP_NEW,
    ]
    assert picture == Picture(Old.DEAD, Wing.ACTIVE, kept=True)
    for path in all_paths(nobody):
        _, end, how = run(path, nobody)
        assert how is not None
        assert ENDS[how](end)


def test_there_are_ways_to_every_verdict() -> None:
    assert {run(path)[2] for path in PATHS} == set(Verdict)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "".join("-+"[ok] for ok in path))
def test_every_way_ends_as_its_verdict_says(path: tuple[bool, ...]) -> None:
    _, picture, verdict = run(path)
    assert verdict is not None
    assert ENDS[verdict](picture)


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda path: "".join("-+"[ok] for ok in path))
def test_it_can_be_taken_up_wherever_it_was_interrupted(prefix: tuple[bool, ...]) -> None:
    _, picture, verdict = run(prefix)
    if verdict is Verdict.UNTOUCHED:
        picture = Picture()  # whoever tries again begins with another new one
    for path in all_paths(picture):
        _, end, resumed = run(path, picture)
        assert resumed is not None
        assert ENDS[resumed](end)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "".join("-+"[ok] for ok in path))
def test_the_old_one_is_not_disturbed_before_the_new_one_stands_by(path: tuple[bool, ...]) -> None:
    steps, _, _ = run(path)
    picture = Picture()
    for step, outcome in zip(steps, path, strict=True):
        if step in (Step.FREEZE, Step.FENCE_OLD):
            assert picture.new is Wing.STANDBY
        if step in (Step.ACTIVATE_NEW, Step.ACTIVATE_BACK):
            assert picture.old is Old.DEAD
        if step is Step.ACTIVATE_BACK:
            assert picture.new is Wing.DEAD
        picture = after(picture, step, outcome)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "".join("-+"[ok] for ok in path))
def test_who_was_told_to_stand_still_ends_or_is_told_to_go_on(path: tuple[bool, ...]) -> None:
    """Even one that did not seem to: it may hear of it late."""
    steps, picture, _ = run(path)
    if Step.FREEZE in steps and picture.old is not Old.DEAD:
        assert steps[-1] is Step.THAW


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "".join("-+"[ok] for ok in path))
def test_the_old_one_is_not_ended_before_the_new_one_can_read_its_ledger(
    path: tuple[bool, ...],
) -> None:
    steps, _, _ = run(path)
    outcomes = dict(zip(steps, path, strict=True))
    if Step.FENCE_OLD in outcomes:
        assert outcomes[Step.CHECK_FORMAT]


@pytest.mark.parametrize(
    "picture",
    [
        Picture(Old.SERVING, Wing.ADOPTING),
        Picture(Old.FROZEN, Wing.ACTIVE),
        Picture(Old.DEAD, Wing.ACTIVE, Wing.ACTIVE),
        Picture(Old.DEAD, Wing.STANDBY, Wing.ABSENT, kept=True),
        Picture(Old.DEAD, Wing.ADOPTING, Wing.STARTED),
    ],
)
def test_pictures_that_must_never_be(picture: Picture) -> None:
    with pytest.raises(ImpossiblePictureError):
        picture.check()
    with pytest.raises(ImpossiblePictureError):
        next(plan(picture))


def test_a_step_that_would_make_two_owners_is_noticed() -> None:
    standby = Picture(Old.SERVING, Wing.STANDBY)
    with pytest.raises(ImpossiblePictureError, match="two processes"):
        after(standby, Step.ACTIVATE_NEW, True)
