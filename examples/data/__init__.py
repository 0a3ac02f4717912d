"""The data the examples run on, bundled: see README.md in this folder."""
