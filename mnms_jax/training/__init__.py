"""Training of many children at once: planning, one compiled function, running."""
