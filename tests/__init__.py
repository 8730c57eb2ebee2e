"""The tests. A package, so that tests/docker is one: what all in there share ends with it."""
