"""What a training step keeps, peaks at and takes, beside rivals."""
