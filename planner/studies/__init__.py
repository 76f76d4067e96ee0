"""What-if studies: many budgets, batch sizes, optimizers, types and input sizes from few traces."""
