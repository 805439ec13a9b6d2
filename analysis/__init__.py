"""From rows to statistics, a summary, figures and one self-contained report."""
