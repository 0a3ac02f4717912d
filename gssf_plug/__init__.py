"""gssf_plug: the GSSF metric as a plug-in for attention, distillation and retrieval.

Importing this package loads torch and nothing heavier; the three rooms (`gssf_plug.attention`,
`gssf_plug.distillation`, `gssf_plug.retrieval`) are imported by name.
"""

from gssf_plug.metric import GSSFMetric

__version__ = "0.1.0"

__all__ = ["GSSFMetric", "__version__"]
