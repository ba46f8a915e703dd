"""Export models for other programs: peft, transformers, vLLM, llama.cpp, Ollama and the Hub."""
