"""The names of what the hanger logs about pgbouncer, clients and itself, beside `log.Event`."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["HangerEvent"]


class HangerEvent(StrEnum):
    """They are part of the outside contract: people grep for them."""

    # listening
    LISTEN_FAILED = "listen-failed"
    LISTENING_ENDED = "listening-ended"
    ACCEPT_PAUSED = "accept-paused"
    DESCRIPTOR_LIMIT = "descriptor-limit"
    # pgbouncer's connection to the hanger
    PEER_REFUSED = "peer-refused"
    HELLO_REFUSED = "hello-refused"
    PROTOCOL_ERROR = "protocol-error"
    DESCRIPTORS_LOST = "descriptors-lost"
    # its life
    BOUNCER_STARTED = "bouncer-started"
    BOUNCER_START_FAILED = "bouncer-start-failed"
    BOUNCER_STANDBY = "bouncer-standby"
    BOUNCER_RETURNING = "bouncer-returning"
    BOUNCER_ADOPTING = "bouncer-adopting"
    BOUNCER_ACTIVE = "bouncer-active"
    BOUNCER_HANGS = "bouncer-hangs"
    BOUNCER_STANDS_STILL = "bouncer-stands-still"
    BOUNCER_KILLED = "bouncer-killed"
    BOUNCER_UNREACHABLE = "bouncer-unreachable"
    BOUNCER_ENDED = "bouncer-ended"
    BOUNCER_FAREWELL = "bouncer-farewell"
    CRASH_LOOP = "crash-loop"
    RELOAD = "reload"
    # the service manager's store of descriptors
    FD_STORE_FULL = "fd-store-full"
    FD_STORE_TAKEN = "fd-store-taken"
    FD_STORE_UNUSABLE = "fd-store-unusable"
    # sessions and ledger
    LEDGER_MADE = "ledger-made"
    LEDGER_TAKEN = "ledger-taken"
    SESSIONS_LOST = "sessions-lost"
    SESSION_UNHELD = "session-unheld"
    SESSION_BLAMED = "session-blamed"
    SESSION_KILLED = "session-killed"
    SESSION_QUARANTINED = "session-quarantined"
    LOGINS_REFUSED = "logins-refused"
    QUARANTINE_EXHAUSTED = "quarantine-exhausted"
    SESSIONS_ENDED = "sessions-ended"
    HOLD_TIMEOUT = "hold-timeout"
    # planned replacement of the hanger
    TAKEOVER = "takeover"
    TAKEOVER_FAILED = "takeover-failed"
    TAKEN_OVER = "taken-over"
    # ... and of pgbouncer
    HANDOFF_STEP = "handoff-step"
    HANDOFF_DONE = "handoff-done"
    HANDOFF_FAILED = "handoff-failed"
