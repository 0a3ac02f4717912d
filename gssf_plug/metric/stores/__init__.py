"""What a vector store makes of folded queries: the number it returns, and whether it finds what exact search finds."""

from gssf_plug.metric.stores.check_store import check_store
from gssf_plug.metric.stores.report import StoreReport

__all__ = ["StoreReport", "check_store"]
