"""Studies: a file says what to measure, cells are measured one by one, a journal keeps them, a table comes out."""
