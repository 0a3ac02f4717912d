"""Studies: what the metric is worth, and when. Run as modules from the folder `examples`."""
