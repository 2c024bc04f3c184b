"""A model under an assignment: quantized weights, rounded inputs, codes that were made before, and its losses."""
