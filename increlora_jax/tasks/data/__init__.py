"""Files and the hub as the columns that a task reads."""
