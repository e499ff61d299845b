"""Reading of untrusted files, and writing that replaces a file whole or leaves the old one."""
