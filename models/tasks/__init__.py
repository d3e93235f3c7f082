"""Detection and segmentation: heads of Hugging Face's transformers on this project's backbones."""
