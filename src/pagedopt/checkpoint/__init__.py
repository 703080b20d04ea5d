"""State that travels: streamed to and from files by parameter, never by page, and into other libraries' state dicts.

save, load       a folder of safetensors files and a manifest, whole whatever happens
export_state     a state dict that torch's or bitsandbytes' AdamW loads
inspect          what is in a checkpoint, and what is damaged
convert          any of these formats to any other
"""
