"""The parts of `gssf_plug.retrieval.fit`: data in, candidates, training, validation, report."""
