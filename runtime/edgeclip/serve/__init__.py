"""The HTTP service: Jina's and OpenAI's embedding APIs on one bundle.

`queue` keeps the graphs busy and fair to all clients, `images` fetches and decodes images of unknown clients.
"""
