"""Speed, as ratios against peers that run beside it. Never part of the tests: see README.md in this folder."""
