"""The config of a run: its schema, the reader of YAML files and overrides, and hints for unknown keys."""
