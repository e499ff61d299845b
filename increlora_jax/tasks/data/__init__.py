"""Data files and hub data sets as the columns that a task reads."""
