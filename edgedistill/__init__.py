"""edgedistill: from a local GGUF teacher to a tiny int8 ONNX student, measured on the device.

Each verb is a module with a function of its name: `from edgedistill.teach import teach`, and so on.
On the device: `from edgedistill.edge import Student`.
"""

__version__ = "0.1.0"
