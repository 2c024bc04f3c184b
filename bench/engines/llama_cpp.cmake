# Included after every project() of llama-cpp-python: without the common library, half of what would be compiled,
# which the programs of llama.cpp need and its Python package does not.
set(LLAMA_BUILD_COMMON OFF)
