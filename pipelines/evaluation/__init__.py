"""How well a model does on annotated photographs, beside others and where they are worse than a benchmark's."""
