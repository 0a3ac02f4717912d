"""The published recipes as YAML, and what reads them: `examples/train_retrieval.py`."""
