"""Files of weights: safetensors, single files, LoRA, deltas. Nothing here knows about models."""
