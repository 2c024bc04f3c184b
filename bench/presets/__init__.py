"""llama.cpp's own presets against mixes that are chosen here, at equal file size."""
