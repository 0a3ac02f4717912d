"""Products in int8 where the CPU multiplies it, with bounds on how far they are from the canonical score."""
