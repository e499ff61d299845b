"""The process that a command runs in: its streams, its signals, its end. Imports nothing heavy."""
