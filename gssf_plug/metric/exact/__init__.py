"""What makes scores exact and fast: canonical scores, fast ones with a bound, and what the bound leaves open."""
