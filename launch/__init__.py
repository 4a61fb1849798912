"""Ways to run one experiment on many devices and hosts; docs/pods.md says which is for what."""
