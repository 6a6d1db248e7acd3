"""Trained networks as files that run without this package, checked on real images; `scripts/export.py` uses it all.

`graph` makes the files, `metadata` says in them how to use them, `runtimes` loads them, `parity` compares them with
the network on a data set, `quantization` makes int8 of fp32, `int8` trains it, `latency` times them. ONNX needs the
extra `export`.
"""

# What an export leaves in its folder beside the network's files: the program that runs an ONNX file, and the report.
SNIPPET = "run_onnx.py"
REPORT = "export.json"
