"""How weights get in: folders, files, the hub."""
