"""What a vector store makes of folded queries: the number it returns, and whether it finds what exact search finds."""

from gssf_plug.metric.stores.check_store import StoreReport, check_store

__all__ = ["StoreReport", "check_store"]
