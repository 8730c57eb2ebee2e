"""The pretended hanger."""

from tests.fix_admin import admin, fake_keeper, logged, open_dir

__all__ = ["admin", "fake_keeper", "logged", "open_dir"]
