"""What is measured, against whom; RESULTS.md has the figures."""
