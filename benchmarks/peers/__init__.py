"""This project's int8 beside that of NNCF, ONNX Runtime, Olive and ModelOpt: python -m benchmarks.peers --help."""
