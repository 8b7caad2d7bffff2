"""The embedding APIs of Jina and OpenAI: requests, answers and their description."""
