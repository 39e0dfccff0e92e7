"""What the benchmarks share: servers in folders of their own, CPU from the scheduler, alternated rounds, results."""
