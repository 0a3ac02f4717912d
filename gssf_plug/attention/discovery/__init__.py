"""Find the attention of a model and prove where its query is. Knows nothing of metrics, patches or files."""
