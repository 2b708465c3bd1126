"""Pruned networks beside such as other ways to prune, or training from scratch, give: python -m benchmarks.pruning."""
