"""The metric inside frameworks that ask for `embed_query` and `embed_documents`: the query folded, documents plain.

One module for each framework, imported by name, since each needs its own package: `langchain`, `llama_index`,
`haystack`.
"""
