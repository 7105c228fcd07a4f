"""The papers' building blocks, one file each; import them from their files."""
