"""From a file of rows to a task: columns, splits, documents, YAML."""
