"""The command line: `gssf-plug fit`, `gssf-plug evaluate`, `gssf-plug info`. It prints; the library below does not."""

from gssf_plug.cli.main import main

__all__ = ["main"]
