"""Tests in containers. Fixtures of the scope "package" end with the last of them."""
