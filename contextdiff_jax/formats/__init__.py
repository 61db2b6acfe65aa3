"""Other libraries' files, in and out: safetensors, the layouts of Hugging Face and diffusers, tokenizers."""
