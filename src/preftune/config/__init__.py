"""What a run is made of: the schema and the reader of YAML files and `a.b=value` overrides."""
