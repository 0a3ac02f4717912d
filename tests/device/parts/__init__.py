"""One module per part; each has `run(record, device, quick)` and may be run alone."""
