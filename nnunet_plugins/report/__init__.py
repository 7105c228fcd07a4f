"""From the record of a benchmark to pages and tables: reads the record's files only, and works without torch."""
