"""How a run goes: configuration, objective, optimizer, checkpoints, processes. Knows no data set."""
