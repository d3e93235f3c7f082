"""The deploy form of transformers' heads, UperNet and RT-DETRv2: what TensorRT lacks or runs badly, replaced."""
