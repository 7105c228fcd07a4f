"""One dataset out of several, and each one's view of what was predicted with it."""
