"""The metric folded into the weights that make the query: one layer's new weights, checked; all layers before any."""
