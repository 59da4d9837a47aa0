"""The network and its science: tensors and shapes, no I/O but a model artifact's own files."""
