"""What several examples share: data, encoders, baselines and runs over seeds."""
